// The part of the page that can be shared: words and settings are in the address after the #, so no server logs them.

export function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name, low, high) => {
    const value = parseFloat(given.get(name) ?? "");
    return value >= low && value <= high ? value : null;
  };
  return {
    words: given.has("words") ? given.get("words").split(",").map((word) => word.trim()).filter(Boolean) : null,
    background: given.has("background") ? given.get("background") !== "0" : null,
    threshold: number("threshold", 0, 1),
    view: given.get("view") ?? "words",
    opacity: number("opacity", 0, 100),
    example: number("example", 0, 99999),
  };
}

export function writeAddress({ words, background, threshold, view, opacity, example }) {
  const shared = new URLSearchParams();
  if (words.length) shared.set("words", words.join(","));
  shared.set("background", background ? "1" : "0");
  if (threshold !== null) shared.set("threshold", threshold);
  shared.set("view", view);
  shared.set("opacity", opacity);
  if (example !== null) shared.set("example", example);
  // Commas are allowed there, and are easier to read.
  history.replaceState(null, "", "#" + shared.toString().replaceAll("%2C", ","));
}
