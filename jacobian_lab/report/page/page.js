"use strict";
// Facts of the page: data that were read from the element above become rows that are searched, sorted and opened.
// Texts are set as text alone, so that nothing of a fact is ever taken for markup.
(() => {
  const { runs, measures, facts, styles } = JSON.parse(document.getElementById("facts-data").textContent);
  const PAGE = 25, UNEDITED = "unedited", SVG = "http://www.w3.org/2000/svg";
  const LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
  const COLORS = ["#0d1b3e", "#b3161f", "#1b84cc", "#8a6d1f", "#5a1e73", "#2f8f6b", "#c2608f", "#555b62"];
  const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
  const two = runs.length > 1;
  const main = measures.filter((measure) => measure.main), shared = main.filter(({ key }) => runs.every((run) => run.values[key]));
  const columns = shared.length ? shared : main;
  const state = { query: "", show: "all", sort: "order", side: 0, down: false, page: 0, open: null, edits: runs.map(lastEdit) };

  // elements

  function build(name, attributes, children, space) {
    const element = space ? document.createElementNS(space, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children) if (child !== null && child !== undefined) element.append(child);
    return element;
  }
  const h = (name, attributes, ...children) => build(name, attributes, children);
  const s = (name, attributes, ...children) => build(name, attributes, children, SVG);

  // numbers

  function lastEdit(run) {
    const after = run.edits.findIndex((name) => name !== UNEDITED);
    const wanted = run.edits.findIndex((name) => name === "forward-replay" || name === "memit+fe");
    return Math.max(wanted >= 0 ? wanted : after, 0);
  }
  function valueOf(run, key, edit, fact) {
    const rows = runs[run].values[key], place = fact.at[run];
    if (!rows || place === null) return null;
    return (rows.length === 1 ? rows[0] : rows[edit])[place];
  }
  const now = (run, key, fact) => valueOf(run, key, state.edits[run], fact);
  function before(run, key, fact) {
    const edit = runs[run].edits.indexOf(UNEDITED);
    return key === "kl" || edit < 0 || edit === state.edits[run] || // D_KL is against the unedited model: that has none
      runs[run].values[key]?.length === 1 ? null : valueOf(run, key, edit, fact);
  }
  function change(key, fact) {
    const first = now(0, key, fact), second = now(1, key, fact);
    return first === null || second === null ? null : second - first;
  }
  function digits(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (value !== 0 && size < 0.005 && size >= 1e-4) return value.toFixed(4).replace("-", "−");
    if (value !== 0 && (size < 1e-4 || size >= 1e5)) return value.toExponential(1).replace("-", "−").replace("e+", "e");
    return (size < 10 ? value.toFixed(2) : size < 100 ? value.toFixed(1) : value.toFixed(0)).replace("-", "−");
  }
  function words(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "yes" && (value === 0 || value === 1)) return value ? "yes" : "no";
    if (unit === "yes" || unit === "share") return `${value > 0 && value < 0.01 ? (100 * value).toPrecision(1) : Math.round(100 * value)} %`;
    return digits(value);
  }
  function signed(value, unit) {
    if (value === null) return "–";
    const text = unit === "yes" || unit === "share" ? `${String(Math.round(100 * value)).replace("-", "−")} pts` : digits(value);
    return value > 0 ? `+${text}` : text;
  }
  const tone = (value, unit) => (unit === "yes" && value !== null ? (value ? "yes" : "no") : null);

  // texts of a fact

  function prompt(fact) {
    if (!fact.prompt) return [`Fact ${fact.id}`];
    const [start, end] = fact.subject, token = fact.decisive ? fact.decisive[0] : end;
    const marked = h("mark", {}, fact.prompt.slice(start, token));
    if (fact.decisive) marked.append(h("span", { class: "token" }, fact.prompt.slice(token, end)));
    return [fact.prompt.slice(0, start), marked, fact.prompt.slice(end)];
  }
  const searched = facts.map((fact) => [fact.id, fact.prompt, fact.new, fact.true, ...(fact.paraphrases || [])].join("\n").toLowerCase());

  // which facts, in which order

  function filters() {
    const named = [["all", "all facts", () => true]];
    if (two) named.push(["both", "facts of both runs", (fact) => fact.at.every((place) => place !== null)]);
    for (const measure of columns.filter((one) => one.unit === "yes")) {
      const name = measure.name.toLowerCase(), key = measure.key;
      if (two) {
        named.push([`${key}:10`, `${name}: A yes, B no`, (fact) => now(0, key, fact) === 1 && now(1, key, fact) === 0]);
        named.push([`${key}:01`, `${name}: A no, B yes`, (fact) => now(0, key, fact) === 0 && now(1, key, fact) === 1]);
      } else {
        named.push([`${key}:1`, `${name}: yes`, (fact) => now(0, key, fact) === 1]);
        named.push([`${key}:0`, `${name}: no`, (fact) => now(0, key, fact) === 0]);
      }
    }
    if (measures.some((measure) => measure.key === "definite")) {
      const share = (fact) => runs.map((_, run) => now(run, "definite", fact)).find((value) => value !== null);
      named.push(["definite", "S positive definite at a layer", (fact) => share(fact) > 0]);
      named.push(["indefinite", "S positive definite nowhere", (fact) => share(fact) === 0]);
    }
    return named;
  }
  function orders() {
    const named = [["order", "order of the run", (fact) => places.get(fact)], ["prompt", "fact", (fact) => fact.prompt || fact.id]];
    if (facts.some((fact) => fact.new)) named.push(["new", "new answer", (fact) => fact.new || ""]);
    for (const { key, name } of columns) {
      if (two) {
        named.push([`${key}:d`, `${name}, B less A`, (fact) => change(key, fact)]);
        named.push([`${key}:0`, `${name}, A`, (fact) => now(0, key, fact)], [`${key}:1`, `${name}, B`, (fact) => now(1, key, fact)]);
      } else named.push([key, name, (fact) => now(0, key, fact)]);
    }
    return named;
  }
  const places = new Map(facts.map((fact, place) => [fact, place]));
  const FILTERS = filters(), ORDERS = orders();

  function chosen() {
    const parts = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const passes = FILTERS.find(([name]) => name === state.show)[2];
    const rank = ORDERS.find(([name]) => name === state.sort)[2];
    const rows = facts.filter((fact, place) => parts.every((part) => searched[place].includes(part)) && passes(fact));
    const ranked = rows.map((fact) => [rank(fact), fact]), sign = state.down ? -1 : 1;
    const none = (value) => value === null || value === undefined;
    ranked.sort(([a, first], [b, second]) => {
      if (none(a) || none(b)) return none(a) - none(b) || places.get(first) - places.get(second); // facts without a value are last
      const order = typeof a === "string" ? a.localeCompare(b) : a - b;
      return sign * order || places.get(first) - places.get(second);
    });
    return ranked.map(([, fact]) => fact);
  }

  // a fact, opened

  const NAMES = [...new Set(runs.flatMap((run) => [...(run.verdicts?.schemes || []), ...(run.lines?.rows || [])]))];
  function look(name) { // the same in every drawing of the page
    const place = NAMES.indexOf(name);
    return { color: styles[name] || COLORS[place % COLORS.length], dash: DASHES[Math.floor(place / COLORS.length) % DASHES.length], shape: place % 5 };
  }
  function marker(x, y, { color, shape }) {
    const r = 3.6;
    if (shape === 0) return s("circle", { cx: x, cy: y, r, fill: color });
    const points = [[], [[-r, -r], [r, -r], [r, r], [-r, r]], [[0, -r - 1], [r + 1, r], [-r - 1, r]], [[0, -r - 1.5], [r + 1.5, 0], [0, r + 1.5], [-r - 1.5, 0]], [[-r - 1, -r], [r + 1, -r], [0, r + 1]]][shape];
    return s("polygon", { points: points.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" "), fill: color });
  }
  function legend(rows) {
    return h("ul", { class: "legend" }, ...rows.map((name) => {
      const style = look(name);
      return h("li", {}, s("svg", { viewBox: "0 0 30 12", "aria-hidden": "true" }, s("line", { x1: 0, x2: 30, y1: 6, y2: 6, stroke: style.color, "stroke-width": 2, "stroke-dasharray": style.dash }), marker(15, 6, style)), ` ${name}`);
    }));
  }
  function numbers(caption, heads, rows, corner) {
    return h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
      h("table", { class: "numbers" }, h("caption", {}, caption),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, corner || ""), ...heads.map((head) => h("th", { scope: "col" }, head)))),
        h("tbody", {}, ...rows.map(([name, ...cells]) => h("tr", {}, h("th", { scope: "row" }, name), ...cells.map((cell) => (cell instanceof Node ? cell : h("td", {}, cell))))))));
  }
  function tableOfEdits(run, fact) {
    const held = measures.filter(({ key }) => (runs[run].values[key] || []).length > 1 || (runs[run].edits.length === 1 && runs[run].values[key]));
    const rows = runs[run].edits.map((name, edit) => [name, ...held.map(({ key, unit }) => {
      const value = valueOf(run, key, edit, fact);
      return h("td", { class: tone(value, unit) }, words(value, unit));
    })]);
    return rows.length && held.length ? numbers("Before and after, by method", held.map(({ name }) => name), rows, "method") : null;
  }
  function tableOfOthers(run, fact) {
    const rows = measures.filter(({ key }) => runs[run].values[key]?.length === 1 && !(runs[run].edits.length === 1));
    return rows.length ? numbers("Of the fact itself", ["value"], rows.map(({ key, meaning, unit }) => [meaning, words(valueOf(run, key, 0, fact), unit)])) : null;
  }
  function lines(run, fact) {
    const held = runs[run].lines, values = held && held.values[fact.at[run]];
    const drawn = held ? held.rows.map((name, row) => [name, row]).filter(([, row]) => values[row].some((value) => value !== null)) : [];
    if (!drawn.length) return null;
    const width = 460, height = 210, left = 42, right = 14, top = 12, bottom = 34;
    const most = Math.max(1, ...values.flat().filter((value) => value !== null));
    const x = (place) => left + (held.xs.length > 1 ? (place / (held.xs.length - 1)) * (width - left - right) : (width - left - right) / 2);
    const y = (value) => height - bottom - (value / most) * (height - top - bottom);
    const step = most <= 1 ? 0.25 : 10 ** Math.floor(Math.log10(most)) / (most / 10 ** Math.floor(Math.log10(most)) < 3 ? 2 : 1);
    const title = `Residual left, by ${held.axis} and ${runs[run].values.residual ? "scheme" : "method"}`;
    const drawing = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: the numbers are in the table beside it` });
    for (let value = 0; value <= most * 1.001; value += step) {
      drawing.append(s("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: value ? "#d8dbde" : "#6b727a" }), s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(Number(value.toPrecision(3)))));
    }
    held.xs.forEach((label, place) => drawing.append(s("text", { x: x(place), y: height - bottom + 16, "text-anchor": "middle" }, String(label))));
    drawing.append(s("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, held.axis));
    drawn.forEach(([name], place) => {
      const style = look(name), row = values[drawn[place][1]];
      const points = row.map((value, at) => (value === null ? null : [x(at), y(value)])).filter(Boolean);
      drawing.append(s("polyline", { points: points.map((point) => point.join(",")).join(" "), fill: "none", stroke: style.color, "stroke-width": 1.8, "stroke-dasharray": style.dash }), ...points.map(([px, py]) => marker(px, py, style)));
    });
    const heads = held.xs.filter((_, at) => drawn.some(([, row]) => values[row][at] !== null));
    const table = drawn.map(([name, row]) => [name, ...held.xs.map((_, at) => at).filter((at) => heads.includes(held.xs[at])).map((at) => digits(values[row][at]))]);
    return [h("div", {}, h("h4", {}, title), h("div", { class: "chart" }, drawing, legend(drawn.map(([name]) => name)))),
      h("div", {}, numbers(`Residual left, by ${held.axis}`, heads.map(String), table, held.axis))];
  }
  function range(held, place, layer, ends) {
    const width = 190, height = 22, x = (value) => 6 + ((value - ends[0]) / (ends[1] - ends[0] || 1)) * (width - 12);
    const drawing = s("svg", { class: "range", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
    const shifts = held.schemes.map((name, row) => [name, held.along[place][row][layer]]).filter(([, value]) => value !== null);
    const said = shifts.map(([name, value]) => `${name} ${digits(value)}`).join(", ");
    drawing.append(s("title", {}, `S from ${digits(held.min[place][layer])} to ${digits(held.max[place][layer])}${said ? `; along the shifts: ${said}` : ""}`),
      s("line", { x1: x(held.min[place][layer]), x2: x(held.max[place][layer]), y1: 11, y2: 11, stroke: "#545c66", "stroke-width": 4, "stroke-linecap": "round" }),
      s("line", { x1: x(0), x2: x(0), y1: 2, y2: 20, stroke: "#1b1f24", "stroke-width": 1 }),
      ...shifts.map(([name, value]) => marker(x(value), 11, look(name))));
    return h("td", {}, drawing);
  }
  function verdicts(run, fact) {
    const held = runs[run].verdicts, place = fact.at[run];
    if (!held || !held.surveyed[place]) return null;
    const ends = [Math.min(0, ...held.min[place]), Math.max(0, ...held.max[place])];
    const names = { 1: "positive definite", 0: "undecided", "-1": "indefinite" };
    const rows = held.layers.map((layer, at) => [String(layer), `${digits(held.min[place][at])} ± ${digits(held.error[place][at])}`, digits(held.max[place][at]), names[held.decision[place][at]] || "–", range(held, place, at, ends)]);
    const where = held.schemes.length ? "range of S, 0, and the shifts in it" : "range of S, and 0";
    return h("div", { class: "full" }, numbers("J by layer: S = (J + Jᵀ)/2", ["λ_min", "λ_max", "S is", where], rows, "layer"));
  }
  function traces(run, fact) {
    const held = runs[run].traces, place = fact.at[run];
    if (!held || !held.role[place].length) return null;
    const roles = held.role[place], tokens = held.tokens[place] || [], count = held.layers.length;
    return held.sites.map((site, at) => {
      const cell = 11, high = 17, left = 96, cells = held.cells[place][at], peak = held.peaks[place][at];
      const best = [...cells].reduce((most, sign, index) => (LEVELS.indexOf(sign) > LEVELS.indexOf(cells[most]) ? index : most), 0);
      const name = (row) => (tokens[row] || held.roles[roles[row]]).trim() || "␣";
      const said = `${site}: most comes back, ${digits(peak)}, at “${name(Math.floor(best / count))}”, layer ${held.layers[best % count]}`;
      const drawing = s("svg", { viewBox: `0 0 ${left + cell * count + 6} ${high * roles.length + 24}`, role: "img", "aria-label": said });
      roles.forEach((_, row) => {
        drawing.append(s("text", { x: left - 6, y: high * row + 13, "text-anchor": "end" }, name(row).slice(0, 14)));
        held.layers.forEach((layer, column) => {
          const level = LEVELS.indexOf(cells[row * count + column]) / 63;
          drawing.append(s("rect", { x: left + cell * column, y: high * row + 1, width: cell - 0.5, height: high - 1, fill: "#1b4f8f", "fill-opacity": Math.max(level, 0.02).toFixed(3) }));
        });
      });
      held.layers.forEach((layer, column) => { if (column % Math.ceil(count / 8) === 0) drawing.append(s("text", { x: left + cell * (column + 0.5), y: high * roles.length + 16, "text-anchor": "middle" }, String(layer))); });
      return h("div", {}, h("h4", {}, said), h("div", { class: "chart" }, drawing));
    });
  }
  function list(name, texts) {
    return texts && texts.length ? h("details", {}, h("summary", {}, `${name} (${texts.length})`), h("ul", {}, ...texts.map((text) => h("li", {}, text)))) : null;
  }
  function detail(fact) {
    const head = h("div", { class: "full" }, h("h3", { tabindex: "-1" }, `Fact ${fact.id}`),
      fact.prompt ? h("p", {}, ...prompt(fact), " → ", h("span", { class: "new" }, fact.new), fact.true ? ` (true: ${fact.true})` : "") : null,
      list("Paraphrases", fact.paraphrases), list("Neighbourhood prompts", fact.neighborhood));
    const parts = runs.map((run, place) => {
      if (fact.at[place] === null) return h("div", { class: "full" }, h("p", { class: "muted" }, `Run ${run.side} has not this fact.`));
      const inner = [tableOfEdits(place, fact), tableOfOthers(place, fact)].filter(Boolean).map((table) => h("div", { class: "full" }, table));
      return h("div", { class: two ? "" : "full" }, two ? h("h4", {}, h("b", { class: "side" }, run.side)) : null,
        h("div", { class: "parts" }, ...inner, ...(lines(place, fact) || []), verdicts(place, fact), ...(traces(place, fact) || [])));
    });
    return h("div", { class: "parts" }, head, ...parts);
  }

  // the table of facts

  function cells({ key, name, unit, meaning }, fact) {
    const first = now(0, key, fact);
    if (two) {
      const second = now(1, key, fact);
      return h("td", { role: "cell", class: "value", "data-name": name, title: meaning }, h("span", {}, h("span", { class: "before" }, `${words(first, unit)} | ${words(second, unit)} `), h("b", {}, signed(change(key, fact), unit))));
    }
    const old = before(0, key, fact);
    return h("td", { role: "cell", class: "value", "data-name": name, title: meaning }, h("span", {}, old === null ? null : h("span", { class: "before" }, `${words(old, unit)} → `), h("span", { class: tone(first, unit) }, words(first, unit))));
  }
  function row(fact, place) {
    const opened = state.open === fact, id = `fact-${place}`;
    const opener = h("button", { type: "button", class: "open", "aria-expanded": String(opened), "aria-controls": id, onclick: () => { state.open = opened ? null : fact; draw(); document.querySelector(`[aria-controls="${id}"]`)?.focus(); } }, ...prompt(fact));
    const answers = facts.some((one) => one.new) ? h("td", { role: "cell", class: "answers", "data-name": "true → new" }, h("span", {}, fact.true ? h("span", { class: "before" }, `${fact.true} → `) : null, h("span", { class: "new" }, fact.new || ""))) : null;
    const head = h("th", { role: "rowheader", scope: "row", class: "prompt" }, opener, fact.prompt ? h("span", { class: "id" }, ` ${fact.id}`) : null);
    const rows = [h("tr", { role: "row" }, head, answers, ...columns.map((measure) => cells(measure, fact)))];
    if (opened) rows.push(h("tr", { role: "row", class: "detail" }, h("td", { role: "cell", id, colspan: columns.length + 2 }, detail(fact))));
    return rows;
  }
  function sorted(name) {
    const held = { prompt: "prompt", new: "new" }[name] || (two ? `${name}:d` : name);
    return { "aria-sort": state.sort === held ? (state.down ? "descending" : "ascending") : "none", held };
  }
  function heading(name, text, meaning, more) {
    const { held, ...aria } = sorted(name);
    return h("th", { role: "columnheader", scope: "col", ...aria }, h("button", { type: "button", title: meaning, "data-sort": held, onclick: () => {
      state.down = state.sort === held ? !state.down : false;
      state.sort = held; state.page = 0; draw();
      document.querySelector(`[data-sort="${held}"]`).focus();
    } }, text), more ? h("span", { class: "id" }, more) : null);
  }
  function draw() {
    const rows = chosen(), pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const part = rows.slice(state.page * PAGE, (state.page + 1) * PAGE);
    const heads = [heading("prompt", "Fact", "The prompt with its subject marked"), facts.some((fact) => fact.new) ? heading("new", "True → new", "The answer before, and the one that the edit is to bring about") : null,
      ...columns.map(({ key, name, meaning }) => heading(key, name, meaning, two ? " A | B, B − A" : ""))];
    table.replaceChildren(h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads)), h("tbody", { role: "rowgroup" }, ...part.flatMap((fact, place) => row(fact, place))));
    status.textContent = `${rows.length} of ${facts.length} facts${pages > 1 ? `, page ${state.page + 1} of ${pages}` : ""}`;
    [previous.disabled, next.disabled] = [state.page === 0, state.page === pages - 1];
    pager.hidden = pages === 1;
    order.value = state.sort;
    direction.textContent = state.down ? "▼ descending" : "▲ ascending";
  }
  function select(label, options, value, change_) {
    const id = `choice-${label.toLowerCase().replace(/\W+/g, "-")}`;
    const field = h("select", { id, onchange: (event) => { change_(event.target.value); state.page = 0; draw(); } }, ...options.map(([name, text]) => h("option", { value: name }, text)));
    field.value = value;
    return [field, h("div", {}, h("label", { for: id }, label), field)];
  }

  const table = h("table", { class: "facts", role: "table", "aria-label": "Facts" });
  const status = h("p", { role: "status", "aria-live": "polite", class: "muted" });
  const turn = (by) => { state.page += by; draw(); table.scrollIntoView({ block: "nearest" }); };
  const previous = h("button", { type: "button", onclick: () => turn(-1) }, "← Previous"), next = h("button", { type: "button", onclick: () => turn(1) }, "Next →");
  const pager = h("div", { class: "pager" }, previous, next);
  const search = h("input", { id: "search-words", type: "search", autocomplete: "off", spellcheck: "false", placeholder: "words of a prompt, an answer, or an id", oninput: (event) => { state.query = event.target.value; state.page = 0; draw(); } });
  const [order, orderField] = select("Sort by", ORDERS.map(([name, text]) => [name, text]), state.sort, (name) => { state.sort = name; });
  const direction = h("button", { type: "button", "aria-label": "Change the direction of sorting", onclick: () => { state.down = !state.down; draw(); } });
  const controls = h("div", { class: "controls", role: "search", "aria-label": "Facts" }, h("div", { class: "search" }, h("label", { for: "search-words" }, "Search"), search));
  runs.forEach((run, place) => {
    if (run.edits.length > 1) controls.append(select(two ? `Method of ${run.side}` : "Method or scheme", run.edits.map((name, edit) => [String(edit), name]), String(state.edits[place]), (edit) => { state.edits[place] = Number(edit); })[1]);
  });
  if (FILTERS.length > 1) controls.append(select("Show", FILTERS, state.show, (name) => { state.show = name; })[1]);
  controls.append(h("div", { class: "order" }, orderField, direction));
  const cut = facts.some((fact) => fact.decisive);
  const sentence = facts.some((fact) => fact.prompt) ? h("p", { class: "muted legend-line" }, "Marked: the subject. ", cut ? "Underlined: its last token, the decisive one." : "Its last token is the decisive one; this run does not say where the tokenizer cut it.") : null;
  document.getElementById("facts-app").append(...[controls, sentence, status, h("div", { class: "scroll" }, table), pager].filter(Boolean));
  draw();
})();
