"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const wanted = {}, last = {}, shown = {}; // by figure: how often asked for, the drawing under way, what is drawn

  const within = (figure, selector) => document.querySelector(`#${figure} ${selector}`);
  const range = (n) => Array.from({ length: n }, (_, i) => i);

  function rowsOf(columns) {
    const names = Object.keys(columns);
    const length = names.length ? columns[names[0]].length : 0;
    return range(length).map((i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  }

  // The parameters that the selected options set, and the lists of the boxes that are ticked.
  function chosen(figure) {
    const params = {};
    page.figures[figure].controls.forEach((control, place) => {
      for (const input of document.querySelectorAll(`#${figure} [data-control="${place}"]`)) {
        const option = control.options[input.value];
        if (!control.several) Object.assign(params, option);
        for (const [name, value] of control.several ? Object.entries(option) : []) {
          params[name] = (params[name] || []).concat(input.checked ? [value] : []);
        }
      }
    });
    return params;
  }

  // The weights of one layer of one size on one text: a number in [0, 1] for each head, query and key.
  function unpacked({ text, size, layer }) {
    const { tokens, maps } = page.attention[text];
    const { layers, heads, weights } = maps[size];
    const bytes = Uint8Array.from(atob(weights), (character) => character.charCodeAt(0));
    const place = layers.indexOf(layer), n = tokens.length;
    const before = heads.slice(0, place).reduce((sum, count) => sum + count, 0);
    const at = (head, query, key) => bytes[((before + head) * n + query) * n + key] / 255;
    return { tokens, n, heads: heads[place], at };
  }

  function attentionRows(params) {
    const { tokens, n, heads, at } = unpacked(params);
    const numbered = tokens.map((token, i) => `${String(i).padStart(2, "0")} ${token}`);
    return range(heads).flatMap((head) => range(n).flatMap((query) => range(n).map((key) => (
      { head, query: numbered[query], key: numbered[key], from: tokens[query], to: tokens[key], weight: at(head, query, key) }
    ))));
  }

  // The same to read: for each head, the token that each token attends to most.
  function attentionTable(params) {
    const { tokens, n, heads, at } = unpacked(params);
    const table = within("attention", "table"), body = document.createElement("tbody");
    const line = (cells, kind) => {
      const row = document.createElement("tr");
      cells.forEach((text, i) => {
        const cell = document.createElement(i && kind === "td" ? "td" : "th");
        cell.scope = kind === "th" ? "col" : "row";
        cell.textContent = text;
        if (cell.tagName === "TD") cell.removeAttribute("scope");
        row.append(cell);
      });
      return row;
    };
    for (const query of range(n)) {
      const most = range(heads).map((head) => range(n).reduce((a, b) => (at(head, query, b) > at(head, query, a) ? b : a)));
      body.append(line([tokens[query], ...most.map((key, head) => `${tokens[key]} ${at(head, query, key).toFixed(2)}`)], "td"));
    }
    const head = document.createElement("thead");
    head.append(line(["token", ...range(heads).map((number) => `head ${number}`)], "th"));
    table.replaceChildren(table.caption, head, body);
  }

  // The layers of the chosen size; the one that was chosen stays where the size has it.
  function offerLayers() {
    const control = page.figures.attention.controls[2], select = within("attention", "[data-control='2']");
    const { layers } = page.attention[0].maps[chosen("attention").size];
    const before = control.options.length ? control.options[select.value].layer : layers[0];
    control.options = layers.map((layer) => ({ layer }));
    select.replaceChildren(...layers.map((layer, i) => new Option(`layer ${layer}`, i)));
    const closest = Math.min(...layers.map((layer) => Math.abs(layer - before)));
    select.value = layers.findIndex((layer) => Math.abs(layer - before) === closest);
  }

  function specOf(figure, width) {
    const { spec: template, data } = page.figures[figure], params = chosen(figure), spec = structuredClone(template);
    for (const param of spec.params || []) {
      if (param.name in params) param.value = params[param.name];
      if (param.name === "dark") param.value = dark.matches;
    }
    spec.datasets = Object.fromEntries(Object.entries(data).map(([name, columns]) => [name, rowsOf(columns)]));
    // Panels share the width; where that makes them too narrow, they stand one below the other.
    for (const panels of spec.vconcat || []) {
      const side = 60, space = 25, least = 160, most = 420; // of the axis; between panels; of a panel
      const each = Math.floor((width - side) / panels.columns) - space;
      if (each < least) panels.columns = 1;
      panels.spec.width = Math.min(most, each < least ? width - side : each);
    }
    if (figure === "attention") {
      spec.datasets.attention = attentionRows(params);
      attentionTable(params);
      const side = 75, space = 20, n = page.attention[params.text].tokens.length; // of the tokens' names; between heads
      spec.spec.width.step = spec.spec.height.step = Math.min(spec.spec.width.step, Math.floor((width - side) / n));
      spec.columns = Math.max(1, Math.floor((width - side + space) / (n * spec.spec.width.step + space)));
    }
    return spec;
  }

  async function draw(figure) {
    const place = within(figure, ".chart"), width = place.clientWidth;
    const config = structuredClone(dark.matches ? page.dark : page.light);
    config.legend.orient = "top";
    config.legend.columns = Math.max(1, Math.floor(width / 140));
    config.axisY.labelLimit = width / 2.5;
    place.style.minHeight = `${place.clientHeight}px`; // so that the page does not jump
    shown[figure]?.finalize();
    shown[figure] = await vegaEmbed(place, specOf(figure, width), {
      mode: "vega-lite",
      renderer: figure === "attention" ? "canvas" : "svg",
      ast: true, // expressions are interpreted: the page may not make code of text
      config,
      tooltip: { theme: dark.matches ? "dark" : "light" },
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: figure,
    });
    place.style.minHeight = "";
    place.dataset.drawn = Number(place.dataset.drawn || 0) + 1;
    place.dataset.width = width;
  }

  // One drawing after the other, and of those asked for meanwhile the last alone.
  function redraw(figure) {
    const mine = (wanted[figure] = (wanted[figure] || 0) + 1);
    last[figure] = (last[figure] || Promise.resolve()).then(() => (mine === wanted[figure] ? draw(figure) : undefined));
    last[figure].catch((error) => console.error(figure, error));
  }

  const figures = Object.keys(page.figures);
  if (page.attention) offerLayers();
  for (const figure of figures) {
    within(figure, ".controls")?.addEventListener("change", (event) => {
      if (figure === "attention" && event.target.dataset.control === "1") offerLayers();
      redraw(figure);
    });
    redraw(figure);
  }
  dark.addEventListener("change", () => figures.forEach(redraw));
  let resized;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => {
      figures.filter((figure) => within(figure, ".chart").clientWidth !== Number(within(figure, ".chart").dataset.width)).forEach(redraw);
    }, 150);
  });
})();
