"use strict"
const ACTIONS = { k: "keep", d: "drop", r: "relabel", s: "soft" }
const LAYERS = { t: "truth", p: "prediction", h: "probability" }

const label = (action, other) => ({
  keep: "Keep", drop: "Drop", relabel: other?.empty ? "Empty mask, like the other image" : "Mask of the other image", soft: "Mean of both masks",
}[action])

// the current action for an image; its mask may come from an image that this finding does not show
const holds = (image, other) => consequence(image.use === "train" ? "keep" : image.use, image.learns && image.learns !== other?.id ? { id: image.learns } : other)

const consequence = (action, other) => ({
  keep: "trained with its own mask", drop: "left out of training",
  relabel: `trained with the mask of ${other?.id ?? "another image"}${other?.empty ? ", which is empty" : ""}`, soft: "trained with the mean of both masks",
}[action])

class Review {
  constructor() {
    const [reason, place] = decodeURIComponent(location.hash.slice(1)).split("/")
    Object.assign(this, { reason: reason || "", place: Number(place) || 0, shown: new Set(["truth"]), loaded: null })
    this.waiting = this.load(location.hash ? {} : { open: true })
    document.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("select, input")) return
      if (this.press(event.key.toLowerCase(), event.shiftKey)) event.preventDefault()
    })
    document.addEventListener("click", event => {
      const button = event.target.closest("button")
      if (button?.dataset.key) this.press(button.dataset.key, button.dataset.second !== undefined, button)
    })
    byId("reason").addEventListener("change", event => this.then(() => {
      Object.assign(this, { reason: event.target.value, place: 0 })
      return this.load({ open: true })
    }))
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.then(() => this.load()) })
  }

  // actions run one after another, so that keys pressed quickly take effect in their order
  then(act) { this.waiting = this.waiting.then(act).catch(error => this.say(error)); return this.waiting }

  say(error) {
    const lost = error instanceof TypeError
    byId("said").textContent = lost ? "The server does not answer. All decisions so far are saved; start `review` again." : error?.message ?? error ?? ""
  }

  async ask(path, body) {
    const answer = await fetch(path, body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })
    const text = await answer.text()
    let found
    try { found = JSON.parse(text) } catch { found = { error: text } }
    if (!answer.ok) throw new Error(found.error)
    return found
  }

  async load({ open = false } = {}) {
    const query = start => `items?${new URLSearchParams({ reason: this.reason, start })}`
    let start = open ? this.place : Math.floor(this.place / (this.loaded?.page ?? 50)) * (this.loaded?.page ?? 50)
    let found = await this.ask(query(start))
    const place = open ? found.next_open ?? this.place : Math.min(this.place, Math.max(0, found.total - 1))
    start = Math.floor(place / found.page) * found.page
    if (start !== found.start) found = await this.ask(query(start))
    Object.assign(this, { loaded: found, place })
    this.draw()
  }

  get item() { return this.loaded?.items[this.place - this.loaded.start] }

  press(key, second, button) {
    if (ACTIONS[key]) this.then(() => this.decide(ACTIONS[key], second, button))
    else if (LAYERS[key]) this.toggle(LAYERS[key])
    else if (key === "z") { byId("pair").classList.toggle("own"); this.press_layers() }
    else if (key === "u") this.then(() => this.undo())
    else if (key === "n") this.then(() => { byId("said").textContent = ""; return this.load({ open: true }) })
    else if (key === "arrowleft" || key === "arrowright") this.then(() => this.step(key === "arrowright" ? 1 : -1))
    else return false
    return true
  }

  async step(by) {
    byId("said").textContent = ""
    this.place = Math.max(0, Math.min((this.loaded?.total ?? 1) - 1, this.place + by))
    if (this.item) this.draw()
    else await this.load()
  }

  async decide(action, second, button) {
    const { item } = this, at = second ? 1 : 0
    if (!item?.images[at] || !item.actions.includes(action)) return
    await this.ask("decide", { key: item.key, place: at, action })
    byId("said").textContent = ""
    if (!second && !button) this.place = Math.min(this.loaded.total - 1, this.place + 1)
    await this.load()
  }

  async undo() {
    const { undone, place } = await this.ask("undo", {})
    if (place !== null && !this.loaded.items.some(item => item.images.some(image => image.id === undone))) {
      Object.assign(this, { reason: "", place })
    } else if (place !== null && !this.item?.images.some(image => image.id === undone)) {
      this.place = this.loaded.start + this.loaded.items.findIndex(item => item.images.some(image => image.id === undone))
    }
    await this.load()
    byId("said").textContent = `Undone: the last decision on ${undone}.`
  }

  toggle(name) {
    if (!this.shown.delete(name)) this.shown.add(name)
    this.layers()
  }

  // --- drawing ---

  draw() {
    const { loaded, item } = this, all = Object.values(loaded.reasons)
    const sum = place => all.reduce((total, one) => total + one[place], 0)
    byId("reason").replaceChildren(make("option", `all (${sum(1)} of ${sum(0)} undecided)`, { value: "" }), ...Object.entries(loaded.reasons).map(
      ([name, [total, open]]) => make("option", `${name} (${open} of ${total} undecided)`, { value: name })))
    byId("reason").value = this.reason
    byId("progress").textContent = loaded.total ? `${loaded.total - loaded.open} of ${loaded.total} decided` : ""
    byId("place").textContent = loaded.total ? `${this.place + 1} of ${loaded.total}` : ""
    byId("command").textContent = loaded.command || "none: this run already uses these decisions"
    byId("item").hidden = !item
    byId("nothing").hidden = Boolean(item)
    history.replaceState(null, "", `#${encodeURIComponent(`${this.reason}/${this.place}`)}`)
    this.list()
    if (!item) return
    byId("title").textContent = `${item.reason}: ${item.images.map(image => image.id).join(" and ")}`
    byId("text").textContent = item.text
    if (this.key !== item.key) {
      this.key = item.key
      if (item.reason === "suspected label") this.shown.add("prediction").add("probability")
      byId("pair").classList.toggle("single", item.images.length === 1)
      byId("pair").replaceChildren(...item.images.map((image, at) => this.figure(image, at)))
      this.layers()
    }
    item.images.forEach((image, at) => this.decisions(image, at))
  }

  figure(image, at) {
    const figure = make("figure", undefined, { "data-number": image.number, "data-predicted": image.predicted }), stack = make("div", undefined, { class: "stack", tabindex: 0 }), inner = make("div", undefined, { class: "inner" })
    const picture = make("img", undefined, { class: "image", alt: `image ${image.id}`, src: `image/${image.number}` })
    picture.addEventListener("error", () => this.lack(figure, "image", "the image cannot be read"))
    inner.append(picture)
    stack.append(inner)
    figure.append(stack, make("figcaption"), make("div", undefined, { class: "decisions", "data-at": at }))
    return figure
  }

  lack(figure, name, text) {
    figure.querySelector(`.lack[data-of="${name}"]`)?.remove()
    if (text) figure.querySelector(".stack").append(make("p", text, { class: "lack", "data-of": name }))
  }

  layers() {  // a layer is loaded when it is shown for the first time
    for (const figure of byId("pair").children) for (const name of Object.values(LAYERS)) {
      const known = name === "truth" || figure.dataset.predicted === "true"
      let layer = figure.querySelector(`.layer.${name}`)
      if (!known && this.shown.has(name)) this.lack(figure, name, `there is no held-out ${name} for this image`)
      if (known && !layer && this.shown.has(name)) {
        layer = make("img", undefined, { class: `layer ${name}`, alt: name, src: `${name}/${figure.dataset.number}` })
        layer.addEventListener("error", () => { layer.hidden = true; layer.dataset.lost = ""; this.lack(figure, name, `there is no ${name} for this image`) })
        figure.querySelector(".inner").append(layer)
      }
      if (layer) layer.hidden = !this.shown.has(name) || "lost" in layer.dataset
      if (!this.shown.has(name)) this.lack(figure, name)
    }
    this.press_layers()
  }

  press_layers() {
    for (const button of document.querySelectorAll(".layers [data-key]")) {
      const name = LAYERS[button.dataset.key]
      button.setAttribute("aria-pressed", name ? this.shown.has(name) : byId("pair").classList.contains("own"))
    }
  }

  decisions(image, at) {
    const { item } = this, figure = byId("pair").children[at], other = item.images[1 - at]
    const now = image.use === "train" ? "keep" : image.use, state = image.decided ? "Decided" : "No decision yet; currently"
    const lost = image.alone ? "; but the other image is left out or trained with another mask, so this image is left out too" : ""
    figure.querySelector("figcaption").textContent = `${image.id}${image.empty ? ", empty mask" : ""}. ${state}: ${holds(image, other)}${lost}.`
    figure.querySelector(".decisions").replaceChildren(...item.actions.map(action => {
      const key = Object.keys(ACTIONS).find(one => ACTIONS[one] === action)
      const attributes = { type: "button", "data-key": key, "data-action": action, title: consequence(action, other), "aria-pressed": image.decided && action === now }
      if (at) attributes["data-second"] = ""
      if (!image.decided && action === now) attributes.class = "proposed"
      const button = make("button", `${label(action, other)} `, attributes)
      button.append(make("kbd", `${at ? "Shift " : ""}${key.toUpperCase()}`))
      return button
    }))
  }

  list() {
    const { items, start, total } = this.loaded
    byId("range").textContent = total ? `${start + 1} to ${start + items.length} of ${total}` : ""
    byId("list").tBodies[0].replaceChildren(...items.map((item, number) => {
      const row = make("tr"), said = item.images.filter(image => image.decided).map(image => {
        const other = item.images.find(one => one.id !== image.id)
        return `${item.images.length > 1 ? `${image.id} ` : ""}${holds(image, other)}`
      })
      row.append(make("td", start + number + 1), make("td", item.reason), make("td", item.images.map(image => image.id).join(", ")), make("td", said.join("; ") || "–"))
      if (start + number === this.place) row.setAttribute("aria-current", "true")
      row.addEventListener("click", () => this.then(() => { scrollTo(0, 0); return this.step(start + number - this.place) }))
      return row
    }))
  }
}

const review = new Review()
review.waiting.catch(error => review.say(error))
