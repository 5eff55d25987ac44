"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const draw = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // Light and dark: what the system says until the button is pressed.
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = (root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    root.style.colorScheme = dark ? "light" : "dark";
  });

  // Tables: a column is sorted by its cells' data-value, as numbers where all are numbers; empty ones come last.
  const sortTable = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: row.cells[column].dataset.value }));
    const numeric = rows.every(({ value }) => value === "" || !Number.isNaN(Number(value)));
    const sign = descending ? -1 : 1;
    rows.sort((first, second) => {
      if (first.value === "" || second.value === "") return (first.value === "") - (second.value === "");
      return sign * (numeric ? first.value - second.value : first.value.localeCompare(second.value));
    });
    body.append(...rows.map(({ row }) => row));
    [...table.tHead.rows[0].cells].forEach((cell, index) => {
      if (index === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      cell.querySelector("button").addEventListener("click", () => {
        // Names ascend first, numbers descend.
        const sorted = cell.getAttribute("aria-sort");
        sortTable(table, column, sorted ? sorted === "ascending" : column > 0);
      });
    });
  }
  for (const field of document.querySelectorAll("[data-find]")) {
    const rows = [...document.getElementById(field.dataset.find).tBodies[0].rows];
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
  }

  // Charts: lines over two axes, drawn anew whenever the width changes.
  const MARGIN = { top: 8, right: 12, bottom: 38, left: 46 };
  const HEIGHT = 260;
  const ticksOf = (low, high, count) => {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
    const ticks = [];
    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) ticks.push(tick);
    return ticks;
  };
  const short = (value) => {
    if (Math.abs(value) >= 10000) return `${+(value / 1000).toFixed(1)}k`;
    return String(+value.toPrecision(Math.abs(value) >= 1 ? 4 : 3));
  };
  const pathOf = (points, toX, toY) =>
    points.map(([x, y], index) => `${index ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join("");

  const drawChart = (figure) => {
    const chart = DATA.charts[figure.dataset.chart];
    const svg = figure.querySelector("svg");
    const width = svg.clientWidth;
    if (!width) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.replaceChildren();
    const [x0, x1] = chart.x.range;
    const [y0, y1] = chart.y.range;
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    const toX = (x) => MARGIN.left + ((x - x0) / (x1 - x0 || 1)) * (right - MARGIN.left);
    const toY = (y) => bottom - ((y - y0) / (y1 - y0 || 1)) * (bottom - MARGIN.top);
    for (const tick of ticksOf(y0, y1, 5)) {
      svg.append(draw("line", { class: "axis", x1: MARGIN.left, x2: right, y1: toY(tick), y2: toY(tick) }));
      svg.append(draw("text", { x: MARGIN.left - 7, y: toY(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    for (const tick of ticksOf(x0, x1, width < 420 ? 4 : 6)) {
      svg.append(draw("text", { x: toX(tick), y: bottom + 17, "text-anchor": "middle" }, short(tick)));
    }
    svg.append(draw("text", { x: (MARGIN.left + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, chart.x.name));
    if (chart.diagonal) {
      svg.append(draw("line", { class: "guide", x1: toX(x0), y1: toY(x0), x2: toX(x1), y2: toY(x1) }));
    }
    for (const series of chart.series) {
      const style = `stroke:var(--${series.color});opacity:${series.faint ? 0.35 : 1};${series.dashed ? "stroke-dasharray:5 4" : ""}`;
      svg.append(draw("path", { class: "line", d: pathOf(series.points, toX, toY), style }));
      if (series.points.length < 25) {
        for (const [x, y] of series.points) {
          svg.append(draw("circle", { cx: toX(x), cy: toY(y), r: 3, style: `fill:var(--${series.color})` }));
        }
      }
    }
    figure.scale = { toX, width, right, bottom, x0, x1 };
  };

  const watchPointer = (figure) => {
    const chart = DATA.charts[figure.dataset.chart];
    const svg = figure.querySelector("svg");
    const tip = make("div", { class: "tip", hidden: "" });
    let rule = null;
    figure.append(tip);
    svg.addEventListener("pointermove", (event) => {
      const { toX, width, right, bottom, x0, x1 } = figure.scale;
      const at = event.clientX - svg.getBoundingClientRect().left;
      const x = x0 + ((at - MARGIN.left) / (right - MARGIN.left)) * (x1 - x0);
      if (x < x0 || x > x1) return;
      const lines = [`${chart.x.name} ${short(x)}`];
      for (const series of chart.series.filter((candidate) => !candidate.faint && candidate.points.length)) {
        const nearest = series.points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
        lines.push(`${series.name}: ${short(nearest[1])}`);
      }
      tip.replaceChildren(...lines.map((line) => make("div", {}, line)));
      tip.hidden = false;
      tip.style.top = `${svg.offsetTop + 8}px`;
      tip.style.left = `${Math.min(svg.offsetLeft + at + 12, svg.offsetLeft + width - tip.offsetWidth)}px`;
      rule?.remove();
      rule = draw("line", { class: "guide", x1: toX(x), x2: toX(x), y1: MARGIN.top, y2: bottom });
      svg.append(rule);
    });
    svg.addEventListener("pointerleave", () => {
      tip.hidden = true;
      rule?.remove();
    });
  };

  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) drawChart(target);
  });
  for (const figure of document.querySelectorAll("[data-chart]")) {
    const { series } = DATA.charts[figure.dataset.chart];
    if (series.length > 1) {
      const entries = series.map(({ name, color, faint, dashed }) => {
        const stroke = make("span", { class: "stroke", style: `border-color:var(--${color});opacity:${faint ? 0.35 : 1};${dashed ? "border-top-style:dashed" : ""}` });
        return make("li", {}, stroke, name);
      });
      figure.querySelector("svg").after(make("ul", { class: "legend" }, ...entries));
    }
    watchPointer(figure);
    resized.observe(figure);
  }

  // Gallery.
  const gallery = DATA.gallery;
  if (!gallery) return;
  const place = document.querySelector(".gallery");
  const tabs = document.querySelector(".tabs");
  const state = { threshold: 0, opacity: 0.6 };
  // With more boxes, labels hide each other: they show where one points.
  const CROWDED = 12;

  const urls = new Map();
  const urlOf = (key) => {
    // One blob for all panels of an image.
    if (!urls.has(key)) {
      const [type, text] = gallery.files[key];
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      urls.set(key, URL.createObjectURL(new Blob([bytes], { type })));
    }
    return urls.get(key);
  };

  // Lengths of runs down the columns, of zeros and ones in turn; each number after the second is a difference to that
  // two before, in characters of five bits and a bit for "goes on".
  const runsOf = (text) => {
    const runs = [];
    for (let at = 0; at < text.length; ) {
      let value = 0;
      let shift = 0;
      let piece;
      do {
        piece = text.charCodeAt(at++) - 48;
        value |= (piece & 31) << shift;
        shift += 5;
      } while (piece & 32);
      if (piece & 16 && shift < 32) value |= -1 << shift;
      runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    }
    return runs;
  };
  const maskOf = (object, width, height) => {
    if (!object.pixels) {
      const mask = new Uint8Array(width * height);
      let at = 0;
      runsOf(object.mask).forEach((length, index) => {
        if (index % 2) for (let i = at; i < at + length; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
        at += length;
      });
      object.pixels = mask;
    }
    return object.pixels;
  };
  const paintMasks = (canvas, objects) => {
    const { width, height } = canvas;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    for (const object of objects) {
      if (!object.mask) continue;
      const mask = maskOf(object, width, height);
      const [red, green, blue] = gallery.colors[object.category];
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          if (!mask[i]) continue;
          const edge = !x || !y || x === width - 1 || y === height - 1 || !mask[i - 1] || !mask[i + 1] || !mask[i - width] || !mask[i + width];
          picture.data.set([red, green, blue, edge ? 235 : 110], 4 * i);
        }
      }
    }
    context.putImageData(picture, 0, 0);
  };

  const boxOf = (object, item, alone) => {
    const [x, y, width, height] = object.box;
    const [red, green, blue] = gallery.colors[object.category];
    const name = gallery.names[object.category];
    const label = object.score === undefined ? name : `${name} ${object.score.toFixed(2)}`;
    const dark = 0.299 * red + 0.587 * green + 0.114 * blue < 150;
    const box = make("div", { class: "box", title: object.score === undefined ? `${name}${alone ? ", missed" : ""}` : `${label}${alone ? ", matches nothing" : `, IoU ${object.iou.toFixed(2)}`}` });
    box.style.cssText = `left:${(100 * x) / item.width}%;top:${(100 * y) / item.height}%;width:${(100 * width) / item.width}%;height:${(100 * height) / item.height}%;--c:rgb(${red} ${green} ${blue});--t:${dark ? "#fff" : "#111"}`;
    box.classList.toggle("alone", alone);
    box.classList.toggle("inside", y < 0.08 * item.height);
    box.classList.toggle("left", x > 0.7 * item.width);
    box.append(make("span", {}, label));
    return box;
  };

  const fillObjects = (panel, item, objects, isAlone) => {
    panel.view.querySelectorAll(".box").forEach((box) => box.remove());
    // Large ones first, so that small ones can be pointed at.
    const ordered = [...objects].sort((first, second) => second.box[2] * second.box[3] - first.box[2] * first.box[3]);
    panel.view.append(...ordered.map((object) => boxOf(object, item, isAlone(object))));
    panel.view.classList.toggle("crowded", objects.length > CROWDED);
    if (gallery.masks) paintMasks(panel.canvas, objects);
  };

  const makePanel = (item, overlay) => {
    const view = make("div", { class: "view" });
    const image = make("img", { src: urlOf(item.image), alt: "", width: item.width, height: item.height });
    view.append(image);
    const panel = { view, caption: make("figcaption"), figure: null, canvas: null, overlay: null };
    if (gallery.masks) {
      panel.canvas = make("canvas", { width: item.width, height: item.height });
      view.append(panel.canvas);
    }
    if (overlay) {
      panel.overlay = make("img", { class: "overlay", src: urlOf(overlay), alt: "" });
      view.append(panel.overlay);
    }
    panel.figure = make("figure", { class: "panel" }, view, panel.caption);
    return panel;
  };

  const fillShot = ({ item, panels }) => {
    const { threshold } = state;
    const shown = item.found.map((objects) => objects.filter((object) => object.score >= threshold));
    const reached = shown.map((objects) => new Set(objects.map((object) => object.match).filter((match) => match >= 0)));
    // The last run is the one that is looked at: its misses are dashed.
    const last = reached[reached.length - 1];
    item.truth.forEach((object, index) => (object.index = index));
    fillObjects(panels[0], item, item.truth, (object) => !object.crowd && !last.has(object.index));
    panels[0].caption.textContent = `ground truth, ${item.truth.length}`;
    shown.forEach((objects, run) => {
      const panel = panels[run + 1];
      const wrong = objects.filter((object) => object.match === -1).length;
      fillObjects(panel, item, objects, (object) => object.match === -1);
      const missed = item.truth.filter((object) => !object.crowd && !reached[run].has(object.index)).length;
      const name = gallery.runs.length > 1 ? `${gallery.runs[run]}: ` : "";
      panel.caption.textContent = `${name}${reached[run].size} found, ${missed} missed, ${wrong} wrong`;
    });
  };

  let shots = [];
  const makeShot = (item) => {
    const overlays = item.overlays ?? [null, ...item.found.map(() => null)];
    const panels = overlays.map((overlay) => makePanel(item, overlay));
    const enlarge = make("button", { class: "button", type: "button", "aria-pressed": "false" }, "enlarge");
    const value = make("span", { class: "soft number" }, item.value);
    const header = make("header", {}, make("strong", { title: item.name }, item.name), value, enlarge);
    const shot = make("article", { class: "card shot" }, header, make("div", { class: "panels" }, ...panels.map((panel) => panel.figure)));
    enlarge.addEventListener("click", () => {
      const large = shot.classList.toggle("large");
      enlarge.setAttribute("aria-pressed", large);
    });
    if (item.overlays) panels.forEach((panel, index) => (panel.caption.textContent = gallery.panels[index]));
    const chips = item.classes.map((category) => {
      const [red, green, blue] = gallery.colors[category];
      return make("li", {}, make("span", { class: "swatch", style: `background:rgb(${red} ${green} ${blue})` }), gallery.names[category]);
    });
    shot.append(make("ul", { class: "chips" }, ...chips));
    place.append(shot);
    return { item, panels };
  };

  const refresh = () => {
    for (const shot of shots) {
      if (shot.item.overlays) for (const panel of shot.panels) panel.overlay.style.opacity = state.opacity;
      else fillShot(shot);
    }
  };
  const select = (group) => {
    for (const tab of tabs.children) {
      const chosen = tab.dataset.group === group;
      tab.setAttribute("aria-selected", chosen);
      tab.tabIndex = chosen ? 0 : -1;
    }
    place.replaceChildren();
    shots = gallery.groups[group].map((index) => makeShot(gallery.items[index]));
    refresh();
  };
  for (const group of Object.keys(gallery.groups)) {
    const tab = make("button", { class: "button", type: "button", role: "tab", "data-group": group }, group);
    tab.addEventListener("click", () => select(group));
    tabs.append(tab);
  }
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...tabs.children];
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    next.focus();
    select(next.dataset.group);
  });
  for (const box of document.querySelectorAll("[data-hide]")) {
    box.addEventListener("change", () => place.classList.toggle(`no-${box.dataset.hide}`, !box.checked));
  }

  const score = document.getElementById("score");
  if (score) {
    const effect = document.getElementById("score-effect");
    const follow = () => {
      state.threshold = Number(score.value);
      document.getElementById("score-value").textContent = state.threshold.toFixed(2);
      effect.textContent = (gallery.effects ?? [])
        .map(({ name, points }) => {
          const [, precision, recall] = points.reduce((best, point) =>
            Math.abs(point[0] - state.threshold) < Math.abs(best[0] - state.threshold) ? point : best);
          return `${gallery.effects.length > 1 ? `${name}: ` : ""}precision ${precision.toFixed(2)}, recall ${recall.toFixed(2)}`;
        })
        .join("; ");
    };
    score.addEventListener("input", () => {
      follow();
      refresh();
    });
    follow();
  }
  const opacity = document.getElementById("opacity");
  if (opacity) {
    const follow = () => {
      state.opacity = Number(opacity.value);
      document.getElementById("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
    };
    opacity.addEventListener("input", () => {
      follow();
      refresh();
    });
    follow();
  }
  select(Object.keys(gallery.groups)[0]);
})();
