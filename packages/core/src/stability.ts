/** The conventions whose old names can be had beside the stable ones. */
const AREAS = ['http', 'database'] as const

type Area = (typeof AREAS)[number]

let wanted: Readonly<Record<Area, boolean>> | undefined

/**
 * Whether this area's old names are wanted beside the new ones, as `http/dup` and `database/dup` in
 * OTEL_SEMCONV_STABILITY_OPT_IN ask for; the new ones are always there, with `http` and `database` and without. It is read
 * once. Other libraries of the process read the same list and know more of its words: what is unknown here is not ours to
 * complain of.
 */
export function wantsOldNames(area: Area): boolean {
  return (wanted ??= readWanted())[area]
}

function readWanted(): Record<Area, boolean> {
  const list = process.env['OTEL_SEMCONV_STABILITY_OPT_IN'] ?? ''
  const names = new Set(list.split(',').map((name) => name.trim().toLowerCase()))
  const entries = AREAS.map((area) => [area, names.has(`${area}/dup`)])
  return Object.fromEntries(entries) as Record<Area, boolean>
}
