/** The units of time, with their length in nanoseconds. */
const units = [
  { name: 's', ns: 1e9 },
  { name: 'ms', ns: 1e6 },
  { name: 'µs', ns: 1e3 },
  { name: 'ns', ns: 1 },
] as const

type Unit = (typeof units)[number]

/** The largest unit of which `ns` holds at least one. */
export function unitOf(ns: number): Unit {
  return units.find((unit) => Math.abs(ns) >= unit.ns) ?? units[3]
}

/** Nanoseconds in a unit, to as many decimals as give `precise` three digits; digits before the point all stay. */
export function inUnit(ns: number, unit: Unit, precise: number = ns): string {
  const digits = Math.floor(Math.abs(precise) / unit.ns).toString().length
  return String(Number((ns / unit.ns).toFixed(Math.max(0, 3 - digits))))
}

/** `840µs`, `12.3ms`, `310ms`, `1.24s`, `2m05s`, `1h02m`. */
export function duration(ns: number): string {
  const seconds = Math.round(Math.abs(ns) / 1e9)
  const sign = ns < 0 ? '-' : ''
  if (seconds >= 3600)
    return `${sign}${Math.floor(seconds / 3600)}h${two(Math.floor((seconds % 3600) / 60))}m`
  if (seconds >= 120) return `${sign}${Math.floor(seconds / 60)}m${two(seconds % 60)}s`
  // 999.9µs rounds to a whole millisecond, and is one.
  const rounded = Number(ns.toPrecision(3))
  const unit = unitOf(Math.abs(rounded) > Math.abs(ns) ? rounded : ns)
  return `${inUnit(ns, unit)}${ns === 0 ? 'ms' : unit.name}`
}

function two(number: number): string {
  return String(number).padStart(2, '0')
}
