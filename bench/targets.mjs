import { ratioError } from './statistic.mjs'

/** Against the floor: what we may cost more than the least that does the work. */
const FLOOR_LIMIT = 1.25
/** Against OpenTelemetry at 100 %: without clients, and with pg + redis + http. */
const PEER_LIMIT = 1 / 8
const PEER_LIMITS_WITH_CLIENTS = { express: 1 / 6, fastify: 1 / 6, koa: 1 / 4 }
/** An unsampled request, against the floor's sampled one. */
const UNSAMPLED_LIMIT = 0.5
/** How many times faster a span's life is than the official SDK's; that SDK is slower on the newer Node. */
const FASTER_ON_NEWEST = 4.5
const FASTER_ON_20 = 3.5
const RETAINED_LIMIT_BYTES = 300
/** Against the bare app. */
const P99_LIMIT = 1.2
const RSS_LIMIT_MB = 30
const BURST_SPANS = 10_000
const MODULES_LIMIT = 40
const FILE_LIMIT_BYTES = 200_000

/**
 * @typedef {object} Verdict
 * @property {string} what
 * @property {string} target
 * @property {string} measured
 * @property {boolean} isMet
 * @property {string} [note]
 */

/**
 * Which targets this run met. What was not measured, or failed, is left out.
 *
 * @param {object} results
 * @param {string} name of the contender that is judged
 * @returns {Verdict[]}
 */
export function judge({ node, micro, endToEnd, instructions, modules }, name = 'ours') {
  return [
    ...judgeEndToEnd(endToEnd, name),
    ...judgeInstructions(instructions, name),
    ...judgeMicro(micro, name, node),
    ...judgeModules(modules),
  ]
}

function judgeInstructions(rows, name) {
  return rowsOf(rows, name).flatMap((row) => judgeAdded(row, rows, 'instructions'))
}

function judgeEndToEnd(rows, name) {
  const verdicts = []
  for (const row of rowsOf(rows, name)) {
    const bare = peerOf(row, rows, 'bare')
    const where = placeOf(row)
    verdicts.push(...judgeAdded(row, rows, 'CPU'))
    if (row.lost !== undefined) verdicts.push(atMost(`${where}: spans lost`, row.lost * 100, 0, ' %'))
    // A machine too busy to answer for the bare app in time has nothing to say of ours.
    if (row.p99 !== undefined && Number.isFinite(bare?.p99)) verdicts.push(judgeLatency(row, bare, where))
    if (bare !== undefined) {
      verdicts.push(atMost(`${where}: RSS over bare`, (row.rss - bare.rss) / 1e6, RSS_LIMIT_MB, ' MB', 0))
    }
  }
  return verdicts
}

function judgeLatency(row, bare, where) {
  const value = row.p99 / bare.p99
  const verdict = atMost(`${where}: p99 against bare`, value, P99_LIMIT, '×')
  if (row.rate !== bare.rate) return { ...verdict, note: 'not at the same rate' }
  if (!Number.isFinite(value)) return { ...verdict, note: 'this run could not tell' }
  // Nothing is taken off them, as the bare app's CPU is.
  const nothing = bare.p99s?.map(() => 0)
  return withError(verdict, value, P99_LIMIT, ratioError(value, [row.p99s], [bare.p99s], [nothing]))
}

/** What tracing adds, of whichever unit, against the floor and OpenTelemetry. */
function judgeAdded(row, rows, unit) {
  const verdicts = []
  const { framework, withClients } = row
  const where = placeOf(row)
  const bare = peerOf(row, rows, 'bare')
  const floor = peerOf(row, rows, 'floor')
  const official = peerOf(row, rows, 'OpenTelemetry')
  const unsampled = peerOf(row, rows, `${row.name}, unsampled`)
  if (floor !== undefined) {
    verdicts.push(addedAtMost(`${where}: added ${unit} against floor`, row, floor, bare, FLOOR_LIMIT))
  }
  if (official !== undefined) {
    const limit = withClients ? PEER_LIMITS_WITH_CLIENTS[framework] : PEER_LIMIT
    const verdict = addedAtMost(`${where}: added ${unit} against OpenTelemetry`, row, official, bare, limit)
    const isOutOfReach = floor !== undefined && floor.added / official.added > limit / FLOOR_LIMIT
    verdicts.push(
      isOutOfReach && verdict.measured !== '-'
        ? { ...verdict, note: `the floor decides: it has ${ratio(floor.added, official.added)}` }
        : verdict,
    )
  }
  if (unsampled !== undefined && floor !== undefined) {
    const what = `${where}: an unsampled request's ${unit} against floor`
    verdicts.push(addedAtMost(what, unsampled, floor, bare, UNSAMPLED_LIMIT))
  }
  return verdicts
}

/** Where tracing has cost less than nothing, the machine was too busy for what it costs to be seen. */
function addedAtMost(what, row, other, bare, limit) {
  const value = row.added / other.added
  const verdict = atMost(what, value, limit, '×')
  const odd = [row, other].find(({ added }) => !(added > 0))
  if (odd !== undefined)
    return { ...verdict, measured: '-', isMet: false, note: `cannot be told: ${odd.name} has added nothing` }
  return withError(verdict, value, limit, ratioError(value, row.rounds, other.rounds, bare?.rounds))
}

function withError(verdict, value, limit, error) {
  if (error === undefined) return verdict
  const measured = `${verdict.measured} ± ${error.toFixed(2)}`
  return Math.abs(value - limit) < error
    ? { ...verdict, measured, note: 'but this run could not tell' }
    : { ...verdict, measured }
}

function rowsOf(rows, name) {
  return rows.filter((row) => row.name === name && row.error === undefined)
}

function peerOf({ framework, withClients }, rows, name) {
  return rowsOf(rows, name).find((row) => row.framework === framework && row.withClients === withClients)
}

function placeOf({ framework, withClients }) {
  return framework + (withClients ? ' + clients' : '')
}

function judgeMicro(rows, name, node) {
  const find = (wanted) => rows.find((row) => row.name === wanted && row.error === undefined)
  const ours = find(name)
  const floor = find('floor')
  const official = find('OpenTelemetry')
  if (ours === undefined) return []
  const verdicts = []
  const life = 'a span + 5 attributes + batch + encode'
  const against = (other, operation) => ours.nanoseconds[operation] / other.nanoseconds[operation]
  if (floor !== undefined)
    verdicts.push(atMost(`${life}, against floor`, against(floor, 'span'), FLOOR_LIMIT, '×'))
  if (official !== undefined) {
    const faster = 1 / against(official, 'span')
    const least = node.startsWith('v20.') ? FASTER_ON_20 : FASTER_ON_NEWEST
    verdicts.push({
      what: `${life}, times as fast as OpenTelemetry`,
      target: `≥ ${least}×`,
      measured: `${faster.toFixed(2)}×`,
      isMet: faster >= least,
    })
  }
  if (floor !== undefined) {
    verdicts.push(atMost('encode, against floor', against(floor, 'encode'), FLOOR_LIMIT, '×'))
  }
  if (ours.heap !== undefined) {
    verdicts.push(
      atMost('heap that a finished span retains', ours.heap.retained, RETAINED_LIMIT_BYTES, ' B', 0),
    )
  }
  if (ours.burst !== undefined) {
    verdicts.push({
      what: 'a burst of 10,000 spans in one tick',
      target: 'none lost',
      measured: `${BURST_SPANS - ours.burst} lost`,
      isMet: ours.burst === BURST_SPANS,
    })
  }
  return verdicts
}

function judgeModules(modules) {
  if (modules === undefined) return []
  const what = "import '@throughline/express'"
  return [
    atMost(`${what}: modules`, modules.count, MODULES_LIMIT, '', 0),
    atMost(`${what}: largest file`, modules.largest / 1000, FILE_LIMIT_BYTES / 1000, ' KB', 0),
  ]
}

function atMost(what, measured, limit, unit, digits = 2) {
  const shown = Number.isInteger(limit) ? limit : limit.toFixed(limit < 0.2 ? 3 : 2)
  return {
    what,
    target: `≤ ${shown}${unit}`,
    measured: `${measured.toFixed(digits)}${unit}`,
    isMet: measured <= limit,
  }
}

function ratio(value, of) {
  return `${(value / of).toFixed(2)}×`
}
