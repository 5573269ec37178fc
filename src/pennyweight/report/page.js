// Draws every plot in the colours of the style sheet, and again when light turns dark.
(() => {
  "use strict";
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("plots").textContent);
  const narrow = matchMedia("(max-width: 640px)");

  // 'var(--name)' -> what the style sheet says now.
  const themed = (value, style) => {
    if (Array.isArray(value)) return value.map((each) => themed(each, style));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([key, each]) => [key, themed(each, style)]),
      );
    }
    const name = typeof value === "string" && /^var\((--[a-z0-9-]+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() : value;
  };

  const draw = async () => {
    const nodes = [...document.querySelectorAll("[data-plot]")];
    const still = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
    for (const node of nodes) {
      const figure = themed(figures[node.dataset.plot], getComputedStyle(root));
      if (narrow.matches) figure.layout.font.size = 11;
      await Plotly.react(node, figure.data, figure.layout, still);
      node.dataset.drawn = "true";
    }
    root.dataset.drawn = String(nodes.length);
  };

  let last = Promise.resolve();
  const redraw = () => { last = last.then(draw); };
  document.querySelectorAll("[data-plot] noscript").forEach((each) => each.remove());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  redraw();
})();
