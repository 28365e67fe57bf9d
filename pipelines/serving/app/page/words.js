// The words to look for, as chips in front of a text field. A comma ends a word, and Backspace removes the last one.

export class Words {
  constructor(box, list, field, changed) {
    this.list = list;
    this.field = field;
    this.changed = changed;
    this.words = [];
    this.colours = new Map();
    box.addEventListener("click", (event) => {
      if (!event.target.closest("button")) field.focus();
    });
    field.addEventListener("input", () => {
      if (/[,\n]/.test(field.value)) this.commit();
    });
    field.addEventListener("paste", (event) => {
      const text = event.clipboardData?.getData("text") ?? "";
      if (!/[,\n]/.test(text)) return;
      event.preventDefault();
      field.value += text;
      this.commit();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Backspace" || field.value || !this.words.length) return;
      this.words.pop();
      this.draw();
      this.changed("removed");
    });
  }

  // Turns the text in the field into words.
  commit() {
    const typed = this.field.value.split(/[,\n]/).map((word) => word.trim().replace(/\s+/g, " ")).filter(Boolean);
    this.field.value = "";
    if (!typed.length) return;
    this.words.push(...typed);
    this.draw();
    this.changed("added");
  }

  set(words) {
    this.words = [...words];
    this.draw();
  }

  // Gives each word the colour of its pixels.
  colour(colours) {
    this.colours = colours;
    this.draw();
  }

  draw() {
    this.field.placeholder = this.words.length ? "" : "dog, frisbee, grass";
    this.list.replaceChildren(...this.words.map((word, index) => {
      const chip = document.createElement("li");
      if (this.colours.has(word)) chip.append(swatch(this.colours.get(word)));
      const name = document.createElement("span");
      name.textContent = chip.title = word;
      const remove = document.createElement("button");
      remove.type = "button";
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Remove ${word}`);
      remove.addEventListener("click", () => {
        this.words.splice(index, 1);
        this.draw();
        this.changed("removed");
        (this.list.querySelectorAll("button")[index] ?? this.field).focus();
      });
      chip.append(name, remove);
      return chip;
    }));
  }
}

export function swatch([red, green, blue]) {
  const mark = document.createElement("span");
  mark.className = "swatch";
  mark.style.background = `rgb(${red} ${green} ${blue})`;
  return mark;
}
