"use strict"
const byId = id => document.getElementById(id)
const make = (name, text, attributes = {}) => {
  const element = document.createElement(name)
  if (text !== undefined) element.textContent = text
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  return element
}
const round = value => Number(value) === 0 ? "0" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+Number(value).toPrecision(4))

// --- light and dark theme, and the current section in the navigation bar ------------------------------------------

function theme() {
  const button = byId("theme"), kept = () => { try { return localStorage.getItem("theme") } catch { return null } }
  const set = value => { if (value) document.documentElement.dataset.theme = value }
  set(kept())
  button.hidden = false
  button.addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
    set(dark === "dark" ? "light" : "dark")
    try { localStorage.setItem("theme", document.documentElement.dataset.theme) } catch { /* a page without storage */ }
  })
}

function navigation() {
  const links = new Map([...document.querySelectorAll(".top nav a")].map(link => [link.hash.slice(1), link]))
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) for (const [id, link] of links) {
      if (id === entry.target.id) link.setAttribute("aria-current", "true")
      else link.removeAttribute("aria-current")
    }
  }, { rootMargin: "-10% 0px -70% 0px" })
  for (const id of links.keys()) if (byId(id)) watch.observe(byId(id))
}

// --- charts: values under the pointer, and highlighting of series with the same key --------------------------------

const numbers = text => text ? text.split(" ").map(Number) : []
const place = (value, [low, high, start, end, zero]) => {
  const scale = zero ? one => Math.log10(Math.max(one, zero)) : one => one
  return start + (scale(value) - scale(low)) / (scale(high) - scale(low)) * (end - start)
}

function pointsOf(svg) {
  const chart = JSON.parse(svg.dataset.chart), points = []
  for (const group of svg.querySelectorAll(".series[data-x]")) {
    const xs = numbers(group.dataset.x), ys = numbers(group.dataset.y), ids = JSON.parse(group.dataset.ids || "[]")
    xs.forEach((x, number) => points.push({
      x, y: ys[number], id: ids[number], name: group.dataset.name, key: group.dataset.key,
      left: place(x, chart.x), top: ys.length ? place(ys[number], chart.y) : Number(group.dataset.place),
    }))
  }
  return { chart, points }
}

function light(key) {
  for (const svg of document.querySelectorAll("svg.chart")) {
    const all = [...svg.querySelectorAll(".series")], has = key && all.some(one => one.dataset.key === key)
    for (const one of all) one.classList.toggle("dim", Boolean(has && one.dataset.key && one.dataset.key !== key))
  }
  for (const row of document.querySelectorAll("tr[data-key]")) row.classList.toggle("lit", row.dataset.key === key)
}

function tell(text, event) {
  const tip = byId("tip")
  tip.hidden = !text
  if (!text) return
  tip.textContent = text
  const left = Math.min(event.pageX + 14, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8)
  tip.style.left = `${Math.max(scrollX + 4, left)}px`
  tip.style.top = `${event.pageY + 16}px`
}

function interactive(svg) {
  let known, here
  const nearest = event => {
    known ||= pointsOf(svg)
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse())
    let best, least = 30 ** 2
    for (const point of known.points) {
      const distance = (point.left - at.x) ** 2 + (point.top - at.y) ** 2
      if (distance < least) [best, least] = [point, distance]
    }
    return best
  }
  const leave = () => { here?.remove(); light(""); tell("") }
  svg.addEventListener("pointermove", event => {
    const point = nearest(event)
    if (!point) return leave()
    here ||= document.createElementNS(svg.namespaceURI, "circle")
    for (const [key, value] of Object.entries({ class: "here", cx: point.left, cy: point.top, r: 6 })) here.setAttribute(key, value)
    svg.append(here)
    svg.style.cursor = point.id && explorer?.has(point.id) ? "zoom-in" : "default"
    light(point.key)
    const { across, up } = known.chart, values = [`${across}: ${round(point.x)}`]
    if (up) values.push(`${up}: ${round(point.y)}`)
    tell(`${[point.id || point.name, ...values].filter(Boolean).join("; ")}`, event)
  })
  svg.addEventListener("pointerleave", leave)
  svg.addEventListener("click", event => { const point = nearest(event); if (point?.id) explorer?.open(point.id) })
}

let explorer  // set by explorer.js in a report with held-out images
theme()
navigation()
document.querySelectorAll("svg.chart").forEach(interactive)
