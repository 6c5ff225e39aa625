"use strict"
// --- all held-out images ---------------------------------------------------------------------------------------------

const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0))

class Explorer {
  constructor(data) {
    this.data = data
    this.columns = data.columns
    this.count = data.columns.id.length
    this.places = new Map(data.columns.id.map((id, number) => [id, number]))
    this.order = this.shown = [...Array(this.count).keys()]
    this.limit = 60
    this.sheets = []
    this.viewer = new Viewer(this)
    this.options()
    this.listen()
    this.draw()
  }

  has(id) { return this.places.has(id) }

  open(id) { if (this.has(id)) this.viewer.show(this.places.get(id)) }

  error(number) {
    const bits = this.columns.error[number]
    if (bits === null) return "unknown"
    const found = this.data.errors.filter((_, bit) => bits >> bit & 1)
    const notes = [this.columns.suspect[number] && "label suspected", this.columns.use[number] === "drop" && "left out by clean"]
    return [...found, ...notes].filter(Boolean).join(", ")
  }

  options() {
    const form = byId("filters"), add = (select, value, text) => select.append(make("option", text, { value }))
    form.hidden = false
    for (const fold of [...new Set(this.columns.fold)].sort((a, b) => a - b)) add(form.fold, fold, fold)
    this.data.errors.forEach((name, bit) => add(form.error, bit, name))
    add(form.error, "any", "any error")
    add(form.error, "none", "no error")
    if (this.columns.suspect.some(Boolean)) add(form.error, "suspect", "label suspected")
    if (this.columns.use.includes("drop")) add(form.error, "drop", "left out by clean")
    if (form.group) for (const name of [...new Set(this.columns.group)].sort().slice(0, 500)) byId("groups").append(make("option", undefined, { value: name }))
    for (const head of document.querySelectorAll("#explorer th[data-sort]")) {
      const button = make("button", head.textContent, { type: "button" })
      head.replaceChildren(button)
      button.addEventListener("click", () => this.sort(head.dataset.sort))
    }
  }

  listen() {
    const form = byId("filters"), body = document.querySelector("#explorer tbody")
    form.addEventListener("submit", event => event.preventDefault())
    form.addEventListener("input", () => this.filter())
    form.addEventListener("reset", () => setTimeout(() => this.filter()))
    byId("more").addEventListener("click", () => { this.limit += 240; this.draw() })
    byId("layout").addEventListener("click", event => {
      const on = byId("explorer").classList.toggle("grid")
      event.target.setAttribute("aria-pressed", on)
      this.limit = on ? 240 : 60
      this.draw()
    })
    body.addEventListener("click", event => { const row = event.target.closest("tr"); if (row) this.viewer.show(Number(row.dataset.place)) })
    body.addEventListener("keydown", event => { if (event.key === "Enter") event.target.click() })
    for (const figure of document.querySelectorAll("figure[data-id]")) if (this.has(figure.dataset.id)) {
      figure.dataset.open = figure.tabIndex = 0
      figure.addEventListener("click", () => this.open(figure.dataset.id))
      figure.addEventListener("keydown", event => { if (event.key === "Enter") this.open(figure.dataset.id) })
    }
  }

  keys(name) {  // sort keys: numbers unchanged, texts in natural order (10_2 before 10_11)
    this.known ||= {}
    const text = value => typeof value === "string" ? value.toLowerCase().replace(/\d+/g, digits => digits.padStart(12, "0")) : value
    return this.known[name] ||= this.columns[name].map(text)
  }

  sort(name) {
    const values = this.columns[name], up = this.sorted === name ? !this.up : true, sign = up ? 1 : -1
    Object.assign(this, { sorted: name, up })
    const keys = this.keys(name), compare = (a, b) => sign * (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0)
    const known = this.order.filter(one => values[one] !== null), rest = this.order.filter(one => values[one] === null)
    this.order = [...known.sort(compare), ...rest]
    for (const head of document.querySelectorAll("#explorer th[data-sort]")) {
      if (head.dataset.sort === name) head.setAttribute("aria-sort", up ? "ascending" : "descending")
      else head.removeAttribute("aria-sort")
    }
    this.filter()
  }

  filter() {
    const form = byId("filters"), { columns } = this, given = name => form[name]?.value.trim() ?? ""
    const text = given("text").toLowerCase(), fold = given("fold"), group = given("group").toLowerCase(), kind = given("error")
    const within = (value, low, high) => (low === "" || value !== null && value >= Number(low)) && (high === "" || value !== null && value <= Number(high))
    const fits = {
      "": () => true, any: one => columns.error[one] > 0, none: one => columns.error[one] === 0,
      suspect: one => columns.suspect[one], drop: one => columns.use[one] === "drop",
    }[kind] || (one => columns.error[one] >> Number(kind) & 1)
    this.shown = this.order.filter(one =>
      (!text || columns.id[one].toLowerCase().includes(text)) && (fold === "" || columns.fold[one] === Number(fold)) &&
      (!group || columns.group[one].toLowerCase().includes(group)) && fits(one) &&
      within(columns.score[one], given("low"), given("high")) && within(columns.size[one], given("least"), given("most")))
    this.limit = byId("explorer").classList.contains("grid") ? 240 : 60
    this.draw()
  }

  stamp(number, scale = 1) {
    const { cell: [width, height], across, stamps, sheets } = this.data, per = across ** 2, element = make("i", undefined, { class: "stamp" })
    Object.assign(element.style, { width: `${scale * width}px`, height: `${scale * height}px` })
    if (number >= stamps) return element
    const sheet = Math.floor(number / per), inside = number % per, rows = Math.ceil(Math.min(per, stamps - sheet * per) / across)
    this.sheets[sheet] ||= URL.createObjectURL(new Blob([bytes(sheets[sheet])], { type: "image/webp" }))
    element.style.background = `url(${this.sheets[sheet]}) ${-scale * width * (inside % across)}px ${-scale * height * Math.floor(inside / across)}px / ${scale * width * across}px ${scale * height * rows}px`
    return element
  }

  row(number) {
    const { columns } = this, row = make("tr", undefined, { tabindex: 0, "data-place": number }), percent = value => value === null ? "–" : value === 0 ? "none" : `${value < 0.01 ? "under 0.01" : value < 10 ? Number(value.toPrecision(2)) : Math.round(value)} %`
    const cell = (text, kind = "") => row.append(make("td", text, kind ? { class: kind } : {}))
    const score = columns.score[number] === null ? "–" : columns.score[number].toFixed(4)
    const picture = make("td", undefined, { class: "of-grid" })
    picture.append(this.stamp(number))
    row.append(picture)
    cell(columns.id[number])
    cell(columns.fold[number])
    if (this.data.grouped) cell(columns.group[number])
    cell(percent(columns.size[number]), "number")
    cell(percent(columns.predicted[number]), "number")
    cell(score, "number of-grid")
    cell(this.error(number))
    return row
  }

  draw() {
    const visible = this.shown.slice(0, this.limit), scores = this.shown.map(one => this.columns.score[one]).filter(one => one !== null)
    document.querySelector("#explorer tbody").replaceChildren(...visible.map(one => this.row(one)))
    const mean = scores.length ? `, mean score ${(scores.reduce((a, b) => a + b, 0) / scores.length).toFixed(4)}` : ""
    byId("count").textContent = `${this.shown.length.toLocaleString("en")} of ${this.count.toLocaleString("en")} images${mean}; ${visible.length} shown`
    document.querySelector(".more").hidden = visible.length === this.shown.length
  }
}

// --- one image, enlarged ---------------------------------------------------------------------------------------------

const KEYS = { t: "truth", p: "prediction", b: "both", r: "probability", i: "image" }
const BLUE = "rgb(60 150 255)", ORANGE = "rgb(255 140 0)"

async function decoded(text, kind) {
  const image = new Image()
  image.src = `data:image/${kind};base64,${text}`
  await image.decode()
  return image
}

async function values(text) {
  const image = await decoded(text, "png"), canvas = new OffscreenCanvas(image.width, image.height)
  const context = canvas.getContext("2d", { willReadFrequently: true })
  context.drawImage(image, 0, 0)
  const pixels = context.getImageData(0, 0, image.width, image.height).data
  return Uint8Array.from({ length: image.width * image.height }, (_, place) => Math.round(pixels[4 * place] / 17))
}

class Viewer {
  constructor(explorer) {
    this.explorer = explorer
    this.data = explorer.data
    this.dialog = byId("viewer")
    this.canvas = this.dialog.querySelector("canvas")
    this.slider = this.dialog.querySelector("input[type=range]")
    this.picker = this.dialog.querySelector("select")
    Object.assign(this, { mode: "both", level: null, chosen: this.data.classes.length > 1 ? -1 : 0 })
    if (this.data.classes.length > 1) this.picker.append(make("option", "all classes", { value: -1 }))
    this.data.classes.forEach((name, number) => this.picker.append(make("option", name, { value: number })))
    byId("class-picker").hidden = this.data.classes.length < 2
    if (this.data.classes.length > 1) this.data.classes.forEach((name, number) => {
      byId("viewer-legend").append(make("i", undefined, { class: "swatch", style: `background: ${this.data.colours[number]}` }), ` ${name} `)
    })
    byId("viewer-legend").append(make("span", "Solid outline: true mask. Dashed outline: prediction.", { class: "quiet" }))
    this.listen()
  }

  listen() {
    const actions = { previous: () => this.step(-1), next: () => this.step(1), close: () => this.dialog.close(), tuned: () => this.threshold(null) }
    this.dialog.addEventListener("click", event => {
      const { do: action, mode } = event.target.closest("button")?.dataset ?? {}
      if (action) actions[action]()
      if (mode) this.turn(mode)
      if (event.target === this.dialog) this.dialog.close()
    })
    this.slider.addEventListener("input", () => this.threshold(Number(this.slider.value)))
    this.picker.addEventListener("change", () => this.pick(Number(this.picker.value)))
    this.dialog.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return
      const key = event.key.toLowerCase(), first = this.data.classes.length > 1 ? -1 : 0
      if (KEYS[key]) this.turn(KEYS[key])
      else if (key === "[" || key === "]") this.threshold(Math.min(15, Math.max(1, Number(this.slider.value) + (key === "]" ? 1 : -1))))
      else if (key === "c") this.pick(this.chosen + 1 < this.data.classes.length ? this.chosen + 1 : first)
      else if (event.target !== this.slider && event.target !== this.picker && key === "arrowleft") this.step(-1)
      else if (event.target !== this.slider && event.target !== this.picker && key === "arrowright") this.step(1)
      else return
      event.preventDefault()
    })
  }

  turn(mode) { this.mode = mode; this.draw() }

  pick(number) { this.chosen = number; if (number < 0) this.level = null; this.draw() }

  threshold(level) {
    this.level = level
    if (level !== null && this.chosen < 0) this.chosen = 0
    if (level !== null && (this.mode === "truth" || this.mode === "image")) this.mode = "both"
    this.draw()
  }

  step(by) {
    const known = this.explorer.shown.filter(one => globalThis.fullSize || this.data.large[one])
    if (!known.length) return
    const now = known.indexOf(this.number)
    this.show(known[now < 0 ? 0 : (now + by + known.length) % known.length])
  }

  async show(number) {
    const { columns } = this.data
    Object.assign(this, { number, level: null, planes: null })
    if (!this.dialog.open) this.dialog.showModal()
    byId("viewer-title").textContent = columns.id[number]
    const facts = [`fold ${columns.fold[number]}`, columns.group[number] && `group ${columns.group[number]}`, this.explorer.error(number), columns.suspect[number]]
    byId("viewer-text").textContent = [columns.score[number] === null ? "" : `${this.data.metric} ${columns.score[number].toFixed(4)} as tuned`, ...facts].filter(Boolean).join(" · ")
    this.dialog.querySelector(".stamp")?.remove()
    let large = this.data.large[number]
    if (globalThis.fullSize) {  // `review` serves every image at its original size
      large = await fullSize(columns.id[number]) ?? large
      if (this.number !== number) return
    }
    for (const part of [this.canvas, this.dialog.querySelector(".tools")]) part.hidden = !large
    if (!large) {
      this.canvas.after(this.explorer.stamp(number, 4))
      byId("viewer-text").textContent += " · this page has only a thumbnail of this image"
      return
    }
    const parts = await Promise.all([decoded(large.image, "webp"), values(large.masks), values(large.probability)])
    if (this.number !== number) return
    const [image, masks, levels] = parts
    this.planes = { ...large, image, masks, levels }
    this.draw()
  }

  predicted(number) {
    const { masks, levels, shape: [height, width], inner: [rows, columns] } = this.planes, start = number * height * width
    if (this.level === null) return place => masks[start + place] < 4 && (masks[start + place] & 1)
    const first = number * rows * columns
    return place => {
      const row = Math.floor(place / width), column = place % width
      return levels[first + Math.floor(row * rows / height) * columns + Math.floor(column * columns / width)] >= this.level
    }
  }

  draw() {
    this.say()
    if (!this.planes) return
    const { image, masks, levels, shape: [height, width], inner: [rows, columns] } = this.planes
    const zoom = Math.max(1, Math.min(8, Math.ceil(720 / Math.max(height, width)))), context = this.canvas.getContext("2d")
    Object.assign(this.canvas, { width: width * zoom, height: height * zoom })
    this.canvas.style.width = `min(100%, ${Math.round(62 * width / height)}vh)`
    context.imageSmoothingEnabled = false
    context.drawImage(image, 0, 0, width * zoom, height * zoom)
    const all = this.chosen < 0, chosen = all ? this.data.classes.map((_, number) => number) : [this.chosen]
    for (const number of chosen) {
      const start = number * height * width, first = number * rows * columns, colour = this.data.colours[number]
      const truth = place => masks[start + place] < 4 && (masks[start + place] & 2), guess = this.predicted(number)
      const heat = place => levels[first + Math.floor(Math.floor(place / width) * rows / height) * columns + Math.floor(place % width * columns / width)] / 15
      if (this.mode === "probability") this.fill(context, place => 0.75 * heat(place), all ? colour : ORANGE, zoom)
      if (this.mode === "truth" || this.mode === "both") this.paint(context, truth, all ? colour : BLUE, zoom, false)
      if (this.mode === "prediction" || this.mode === "both" || this.mode === "probability") this.paint(context, guess, all ? colour : ORANGE, zoom, true)
    }
  }

  paint(context, inside, colour, zoom, dashed) {
    if (this.mode !== "probability") this.fill(context, place => inside(place) ? (this.mode === "both" ? 0.18 : 0.35) : 0, colour, zoom)
    const [height, width] = this.planes.shape
    context.beginPath()
    for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
      const place = row * width + column
      if (!inside(place) || dashed && Math.floor((row + column) * zoom / 8) % 2) continue
      const x = column * zoom, y = row * zoom
      if (!row || !inside(place - width)) { context.moveTo(x, y); context.lineTo(x + zoom, y) }
      if (row === height - 1 || !inside(place + width)) { context.moveTo(x, y + zoom); context.lineTo(x + zoom, y + zoom) }
      if (!column || !inside(place - 1)) { context.moveTo(x, y); context.lineTo(x, y + zoom) }
      if (column === width - 1 || !inside(place + 1)) { context.moveTo(x + zoom, y); context.lineTo(x + zoom, y + zoom) }
    }
    const line = Math.max(2, zoom / 2)
    Object.assign(context, { strokeStyle: "rgb(0 0 0 / .5)", lineWidth: line + 2 })
    context.stroke()
    Object.assign(context, { strokeStyle: this.mode === "probability" ? "white" : colour, lineWidth: line })
    context.stroke()
  }

  fill(context, strength, colour, zoom) {
    const [height, width] = this.planes.shape, small = new OffscreenCanvas(width, height), inner = small.getContext("2d")
    const [red, green, blue] = colour.match(/\d+/g).map(Number), pixels = inner.createImageData(width, height)
    for (let place = 0; place < height * width; place++) pixels.data.set([red, green, blue, 255 * strength(place)], 4 * place)
    inner.putImageData(pixels, 0, 0)
    context.drawImage(small, 0, 0, width * zoom, height * zoom)
  }

  say() {
    for (const button of this.dialog.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === this.mode)
    this.picker.value = this.chosen
    const tuned = this.chosen < 0 ? null : this.data.thresholds[this.chosen], output = this.dialog.querySelector("output")
    if (this.level === null) {
      this.slider.value = Math.round((tuned ?? 128) / 16)
      output.textContent = tuned === null ? "as tuned" : `as tuned: ${tuned} of 255`
      return
    }
    this.slider.value = this.level
    const scores = this.planes?.scores[this.chosen], of = this.data.classes.length > 1 ? ` of ${this.data.classes[this.chosen]}` : ""
    output.textContent = `${16 * this.level} of 255, without other rules: ${this.data.measure}${of} of this image ${scores ? scores[this.level].toFixed(4) : "–"}`
  }
}

explorer = new Explorer(JSON.parse(byId("explorer-data").textContent))
