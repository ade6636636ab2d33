"use strict";
// Tables: a click on a heading sorts, text in the field above filters.
const numberIn = (text) => { const found = text.replace(/,/g, "").replace("−", "-").match(/-?\d+(\.\d+)?(e[-+]?\d+)?/i); return found ? Number(found[0]) : NaN; };
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const texts = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
      const numeric = column > 0 && rows.some((row) => !Number.isNaN(numberIn(texts.get(row))));
      const compared = (a, b) => {
        if (!numeric) return texts.get(a).localeCompare(texts.get(b));
        const [x, y] = [numberIn(texts.get(a)), numberIn(texts.get(b))];
        return Number.isNaN(x) ? (Number.isNaN(y) ? 0 : 1) : Number.isNaN(y) ? -1 : x - y;
      };
      const undefinedLast = (row) => numeric && Number.isNaN(numberIn(texts.get(row)));
      const sorted = rows.filter((row) => !undefinedLast(row)).sort(compared);
      if (descending) sorted.reverse();
      body.append(...sorted, ...rows.filter(undefinedLast));
    });
  });
}
for (const field of document.querySelectorAll("input.filter")) {
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of document.getElementById(field.dataset.of).tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
// A link into a closed claim opens it; paper shows everything.
const opened = () => { const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1))); if (target && target.tagName === "DETAILS") target.open = true; };
addEventListener("hashchange", opened); opened();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
// Charts take the page's colours, and scenes that belong together turn together.
// Dark marks would vanish on a dark page: there grey ones take the text's colour, others become lighter.
const lighter = (colour, text) => {
  const hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(colour || "");
  if (!hex) return null;
  const parts = hex.slice(1).map((part) => parseInt(part, 16));
  if (0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] >= 70) return null;
  if (Math.max(...parts) - Math.min(...parts) < 30) return text;
  return `rgb(${parts.map((part) => Math.round(part + 0.5 * (255 - part))).join(",")})`;
};
const legible = (plot) => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const text = getComputedStyle(document.body).color;
  plot.given = plot.given || plot.data.map((trace) => [trace.marker?.color, trace.line?.color, trace.error_x?.color, trace.error_y?.color]);
  const places = ["marker.color", "line.color", "error_x.color", "error_y.color"];
  return Promise.all(plot.given.map((colours, index) => {
    const changed = {};
    colours.forEach((colour, place) => {
      const seen = lighter(colour, text);
      if (seen) changed[places[place]] = dark ? seen : colour;
    });
    return Object.keys(changed).length ? Plotly.restyle(plot, changed, [index]) : null;
  }));
};
const coloured = (layout) => {
  const colour = getComputedStyle(document.body).color;
  const found = { "font.color": colour, "legend.font.color": colour, "title.font.color": colour };
  for (const key of Object.keys(layout)) if (/^[xy]axis\d*$/.test(key)) { found[`${key}.color`] = colour; }
  if (layout.scene) for (const axis of ["xaxis", "yaxis", "zaxis"]) found[`scene.${axis}.color`] = colour;
  return found;
};
for (const group of document.querySelectorAll(".plots")) {
  const plots = [...group.querySelectorAll(".plot")];
  const drawn = plots.map((plot) => {
    const data = JSON.parse(plot.querySelector("script").textContent);
    const layout = { ...data.layout, autosize: true };
    return Plotly.newPlot(plot, data.data, layout, { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["lasso2d", "select2d"] })
      .then(() => Plotly.relayout(plot, coloured(layout))).then(() => legible(plot));
  });
  if (group.dataset.linked === "true") {
    let turning = false;
    const follow = (plot) => (event) => {
      const camera = event["scene.camera"];
      if (!camera || turning) return;
      turning = true;
      Promise.all(plots.filter((other) => other !== plot).map((other) => Plotly.relayout(other, { "scene.camera": camera }))).finally(() => { turning = false; });
    };
    Promise.all(drawn).then(() => plots.forEach((plot) => { plot.on("plotly_relayout", follow(plot)); plot.on("plotly_relayouting", follow(plot)); }));
  }
  Promise.all(drawn).then(() => { group.dataset.drawn = "true"; });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of document.querySelectorAll(".plot")) if (plot.layout) Plotly.relayout(plot, coloured(plot.layout)).then(() => legible(plot));
});
