import { table } from './table.mjs'
import { judge } from './targets.mjs'

/** The results as text. */
export function report(results) {
  const { node, cores, micro, endToEnd, profile, instructions, failures } = results
  const parts = [`Node ${node}; ${instructions.length > 0 ? 'under valgrind' : cores}`]
  if (micro.length > 0) parts.push(microTable(micro))
  for (const rows of groups(endToEnd)) parts.push(endToEndTable(rows))
  for (const rows of groups(profile)) parts.push(profileTable(rows))
  for (const rows of groups(instructions)) parts.push(instructionsTable(rows))
  const verdicts = judge(results)
  if (verdicts.length > 0) parts.push(targetTable(verdicts))
  const failed = [...micro, ...endToEnd, ...profile, ...instructions].filter(
    ({ error }) => error !== undefined,
  )
  parts.push(
    ...failed.map(
      (row) => `FAILED ${row.framework === undefined ? 'micro' : title(row)}, ${row.name}: ${row.error}`,
    ),
    ...failures.map((failure) => `FAILED ${failure}`),
  )
  return parts.join('\n\n')
}

function targetTable(verdicts) {
  const met = verdicts.filter(({ isMet }) => isMet).length
  const rows = verdicts.map(({ what, target, measured, isMet, note }) => [
    what,
    target,
    measured,
    (isMet ? 'met' : 'NOT MET') + (note === undefined ? '' : ` (${note})`),
  ])
  return table([`targets: ${met} of ${verdicts.length} met in this run`, 'target', 'measured', ''], rows)
}

function groups(rows) {
  const found = new Map()
  for (const row of rows) {
    const key = title(row)
    found.set(key, [...(found.get(key) ?? []), row])
  }
  return [...found.values()]
}

function title({ framework, withClients }) {
  return framework + (withClients ? ' + pg + redis + http' : '')
}

function microTable(rows) {
  const floor = rows.find(({ name }) => name === 'floor')
  const operations = Object.keys(floor?.nanoseconds ?? rows[0].nanoseconds)
  return table(
    ['ns CPU (× floor)', ...operations, 'heap B made', 'heap B kept', 'burst of 10,000', 'version'],
    rows.map(({ name, version = '', error, nanoseconds, heap, burst }) => [
      name,
      ...operations.map((operation) =>
        nanoseconds[operation] === undefined
          ? '-'
          : beside(nanoseconds[operation], floor?.nanoseconds[operation]),
      ),
      heap?.allocated.toFixed(0) ?? '-',
      heap?.retained.toFixed(0) ?? '-',
      String(burst ?? '-'),
      error === undefined ? version : `${version} FAILED, see below`,
    ]),
  )
}

function endToEndTable(rows) {
  const by = (wanted) => rows.find(({ name }) => name === wanted)
  const floor = by('floor')
  const openTelemetry = by('OpenTelemetry')
  const bare = by('bare')
  return table(
    [
      title(rows[0]),
      'CPU µs/request',
      'added',
      '× floor',
      '× OTel',
      'p50 ms',
      'p99 ms',
      '× bare',
      'at req/s',
      'RSS MB',
      'over bare',
      'spans',
      'version',
    ],
    rows.map((row) =>
      row.error !== undefined
        ? failedRow(row, 11)
        : [
            row.name,
            fixed(row.cpu, 1),
            fixed(row.added, 1),
            times(row.added, floor?.added),
            times(row.added, openTelemetry?.added),
            fixed(row.p50, 2),
            fixed(row.p99, 2),
            times(row.p99, bare?.p99),
            fixed(row.rate, 0),
            fixed(row.rss / 1e6, 0),
            fixed((row.rss - bare?.rss) / 1e6, 0),
            `${fixed(row.spansPerRequest, 2)}${row.lost > 0.001 ? `, ${(row.lost * 100).toFixed(1)} % lost` : ''}`,
            row.version ?? '',
          ],
    ),
  )
}

function profileTable(rows) {
  const by = (wanted) => rows.find(({ name }) => name === wanted)
  const floor = by('floor')
  const openTelemetry = by('OpenTelemetry')
  return table(
    [title(rows[0]), 'own µs/request', '× floor', '× OTel', 'rounds', 'of all µs', 'version'],
    rows.map((row) =>
      row.error !== undefined
        ? failedRow(row, 5)
        : [
            row.name,
            fixed(row.own, 1),
            times(row.own, floor?.own),
            times(row.own, openTelemetry?.own),
            `${fixed(Math.min(...row.rounds), 1)} to ${fixed(Math.max(...row.rounds), 1)}`,
            fixed(row.all, 0),
            row.version,
          ],
    ),
  )
}

function instructionsTable(rows) {
  const by = (wanted) => rows.find(({ name }) => name === wanted)
  const floor = by('floor')
  const openTelemetry = by('OpenTelemetry')
  return table(
    [
      title(rows[0]),
      'instructions/request',
      'added',
      '× floor',
      '× OTel',
      'rounds',
      'misses/request',
      'added',
      '× floor',
      '× OTel',
      'spans',
      'version',
    ],
    rows.map((row) =>
      row.error !== undefined
        ? failedRow(row, 10)
        : [
            row.name,
            fixed(row.count, 0),
            fixed(row.added, 0),
            times(row.added, floor?.added),
            times(row.added, openTelemetry?.added),
            `${fixed(Math.min(...row.rounds), 0)} to ${fixed(Math.max(...row.rounds), 0)}`,
            fixed(row.misses, 0),
            fixed(row.addedMisses, 0),
            times(row.addedMisses, floor?.addedMisses),
            times(row.addedMisses, openTelemetry?.addedMisses),
            fixed(row.spansPerRequest, 2),
            row.version,
          ],
    ),
  )
}

/** The row of one who failed, with nothing in so many columns. */
function failedRow({ name, version = '' }, columns) {
  return [name, ...Array.from({ length: columns }, () => '-'), `${version} FAILED, see below`]
}

function fixed(value, digits) {
  if (value === Infinity) return 'never'
  return value === undefined || Number.isNaN(value) ? '-' : value.toFixed(digits)
}

function beside(nanoseconds, floor) {
  const ratio = times(nanoseconds, floor)
  return nanoseconds.toFixed(0) + (ratio === '-' ? '' : ` (${ratio})`)
}

function times(value, of) {
  const ratio = value / of
  return value === of || !Number.isFinite(ratio) ? '-' : `${ratio.toFixed(2)}×`
}
