// The parts around the picture: tabs above it, the legend and the table of groups and words below it.

import { swatch } from "./words.js";

const $ = (id) => document.getElementById(id);

export const percent = (share) => (share > 0 && share < 0.01 ? "<1 %" : `${Math.round(100 * share)} %`);

export function drawTabs(numStages, view, show) {
  const stages = Array.from({ length: numStages }, (_, index) =>
    [`stage-${index + 1}`, numStages > 1 ? `Groups, stage ${index + 1}` : "Groups"]);
  $("tabs").replaceChildren(...[["words", "Words"], ...stages, ["image", "Image"]].map(([name, title]) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.id = `tab-${name}`;
    tab.textContent = title;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", "picture");
    tab.setAttribute("aria-selected", String(name === view));
    tab.tabIndex = name === view ? 0 : -1;
    tab.addEventListener("click", () => show(name));
    return tab;
  }));
  $("picture").setAttribute("aria-labelledby", `tab-${view}`);
}

// `entries`: [name, colour, share] per index. Calls `look(index or null)` on hover, and `pin(index)` on a click.
export function drawLegend(entries, { look, pin }) {
  const items = entries.map(([name, colour, share], index) => ({ name, colour, share, index }));
  items.sort((first, second) => second.share - first.share);
  $("legend").replaceChildren(...items.map(({ name, colour, share, index }) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = share ? "" : "absent";
    button.dataset.index = index;
    const label = document.createElement("b");
    label.textContent = label.title = name;
    const size = document.createElement("small");
    size.textContent = percent(share);
    button.append(swatch(colour), label, size);
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look(index));
    button.addEventListener("pointerleave", () => look(null));
    button.addEventListener("focus", () => button.matches(":focus-visible") && look(index));
    button.addEventListener("blur", () => look(null));
    button.addEventListener("click", () => pin(index));
    item.append(button);
    return item;
  }));
}

// Words that match a group come first.
export function drawAffinities(answer) {
  const rows = answer?.affinities ?? [];
  $("affinities").hidden = !rows.length;
  if (!rows.length) return;
  const names = answer.names.slice(answer.has_background ? 1 : 0);
  const best = names.map((_, word) => Math.max(...rows.map((row) => row[word])));
  const order = names.map((_, word) => word).sort((first, second) => best[second] - best[first]);
  const colours = answer.groups.at(-1).colours;
  const head = document.createElement("tr");
  head.append(cell("th", "Group", "col"), ...order.map((word) => cell("th", names[word], "col")));
  $("scroll").querySelector("thead").replaceChildren(head);
  $("scroll").querySelector("tbody").replaceChildren(...rows.map((row, group) => {
    const line = document.createElement("tr");
    const name = cell("th", "", "row");
    const share = document.createElement("small");
    share.textContent = percent(answer.group_shares[group]);
    name.append(swatch(colours[group]), `Group ${group + 1}`, share);
    line.append(name, ...order.map((word) => {
      const box = cell("td", String(Math.round(100 * row[word])));
      box.classList.toggle("none", row[word] < 0.005);
      box.style.background = `rgb(var(--heat) / ${0.04 + 0.6 * row[word]})`;
      return box;
    }));
    return line;
  }));
}

function cell(kind, text, scope) {
  const made = document.createElement(kind);
  made.textContent = made.title = text;
  if (scope) made.scope = scope;
  return made;
}
