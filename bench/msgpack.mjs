/**
 * How many spans a body holds that Datadog's agent would take: MessagePack, a list of traces, each a list of spans.
 *
 * @param {Buffer} body
 */
export function countMsgpackSpans(body) {
  let at = 0
  let count = 0
  const traces = lengthOfArray()
  for (let trace = 0; trace < traces; trace++) {
    const spans = lengthOfArray()
    count += spans
    for (let span = 0; span < spans; span++) skip()
  }
  return count

  function lengthOfArray() {
    const type = body[at++]
    if (type >> 4 === 0x9) return type & 0x0f
    if (type === 0xdc) return unsigned(2)
    if (type === 0xdd) return unsigned(4)
    throw new Error(`expected a list, received the type ${type}`)
  }

  function unsigned(width) {
    at += width
    return body.readUIntBE(at - width, width)
  }

  /** Passes one value, whatever it is (the MessagePack specification, formats). */
  function skip() {
    const type = body[at++]
    if (type <= 0x7f || type >= 0xe0 || (type >= 0xc0 && type <= 0xc3)) return
    if (type <= 0x8f) skipMany((type & 0x0f) * 2)
    else if (type <= 0x9f) skipMany(type & 0x0f)
    else if (type <= 0xbf) at += type & 0x1f
    else if (type <= 0xc6) pass(unsigned(1 << (type - 0xc4)))
    else if (type <= 0xc9) pass(unsigned(1 << (type - 0xc7)) + 1)
    else if (type <= 0xcb) at += 4 << (type - 0xca)
    else if (type <= 0xcf) at += 1 << (type - 0xcc)
    else if (type <= 0xd3) at += 1 << (type - 0xd0)
    else if (type <= 0xd8) at += 1 + (1 << (type - 0xd4))
    else if (type <= 0xdb) pass(unsigned(1 << (type - 0xd9)))
    else if (type <= 0xdd) skipMany(unsigned(2 << (type - 0xdc)))
    else skipMany(unsigned(2 << (type - 0xde)) * 2)
  }

  // `at += unsigned(…)` would forget that reading the length has moved on, too.
  function pass(bytes) {
    at += bytes
  }

  function skipMany(values) {
    for (let value = 0; value < values; value++) skip()
  }
}
