import stringWidth from 'string-width'

/** How a piece of text looks, by meaning. */
export type Style = 'plain' | 'dim' | 'bold' | 'service' | 'callee' | 'critical' | 'error'

/** A piece of a line: text and its look. Lines are measured and cut before they are painted. */
export type Piece = { text: string; style: Style }

/** SGR parameters (ECMA-48, 8.3.117). */
const sgr: Record<Style, string> = {
  plain: '',
  dim: '2',
  bold: '1',
  service: '36',
  callee: '35',
  critical: '1;33',
  error: '1;31',
}

/** More than any screen shows of one name; it bounds the work on names of megabytes. */
const maxLength = 2000

const graphemes = new Intl.Segmenter()

/** Invisible characters that hold emoji and letters together: joiners and variation selectors. */
const joiners = new Set(['\u200c', '\u200d', '\ufe0e', '\ufe0f'])

/** Controls, format characters, lone surrogates, line separators, and whatever else is not to be seen. */
const unseen = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu

/**
 * Text from outside, made harmless: line breaks and tabs become a space, other control characters are shown as
 * their symbol (ESC is ␛), and what is invisible or turns the direction of the line becomes �. The joiners that
 * hold emoji together stay.
 */
export function harmless(text: string): string {
  return text.slice(0, maxLength).replace(/\s+/g, ' ').replace(unseen, visible)
}

function visible(character: string): string {
  const code = character.codePointAt(0) ?? 0
  if (joiners.has(character)) return character
  if (code < 0x20) return String.fromCodePoint(0x2400 + code)
  return code === 0x7f ? '␡' : '�'
}

export function piece(text: string, style: Style = 'plain'): Piece {
  return { text, style }
}

/** ASCII, and what bars and ranges are drawn with: a character is a column, and nearly all text is of these. */
const narrowOnly = /^[ -~─-╿–→]*$/

/**
 * Columns on a terminal. What takes more than `most` is not looked at to its end, and counts as any number above that: an
 * error may quote a whole query of which the screen shows the beginning.
 */
export function width(text: string, most: number = Infinity): number {
  if (narrowOnly.test(text)) return text.length
  let used = 0
  for (const { segment } of graphemes.segment(text)) {
    used += columnsOf(segment)
    if (used > most) break
  }
  return used
}

export function widthOf(pieces: readonly Piece[], most: number = Infinity): number {
  let sum = 0
  for (const { text } of pieces) {
    sum += width(text, most - sum)
    if (sum > most) break
  }
  return sum
}

/** What was measured: a text is of few characters, and is measured at each step of its way to a line. */
const measured = new Map<string, number>()
const maxMeasured = 4096

function columnsOf(segment: string): number {
  let columns = measured.get(segment)
  if (columns !== undefined) return columns
  columns = stringWidth(segment)
  if (measured.size === maxMeasured) measured.clear()
  measured.set(segment, columns)
  return columns
}

/** At most `columns` wide; what is cut ends in `…`. No character is cut in two. */
export function clip(pieces: readonly Piece[], columns: number): Piece[] {
  if (widthOf(pieces, columns) <= columns) return [...pieces]
  const clipped: Piece[] = []
  let left = Math.max(0, columns - 1)
  for (const { text, style } of pieces) {
    const head = start(text, left)
    clipped.push(piece(head, style))
    left -= width(head)
    if (head.length < text.length) break
  }
  return columns > 0 ? [...clipped, piece('…', clipped.at(-1)?.style)] : []
}

/** Exactly `columns` wide. */
export function fit(pieces: readonly Piece[], columns: number): Piece[] {
  const clipped = clip(pieces, columns)
  return [...clipped, piece(' '.repeat(Math.max(0, columns - widthOf(clipped))))]
}

/** The longest start of a text that is at most `columns` wide. */
function start(text: string, columns: number): string {
  if (narrowOnly.test(text)) return text.slice(0, columns)
  let used = 0
  let end = 0
  for (const { segment, index } of graphemes.segment(text)) {
    used += columnsOf(segment)
    if (used > columns) return text.slice(0, index)
    end = index + segment.length
  }
  return text.slice(0, end)
}

/** Text in lines of at most `columns`, broken at spaces where there are some; the last of `lines` is clipped. */
export function wrap(text: string, columns: number, lines: number): string[] {
  const wrapped: string[] = []
  let rest = text.trim()
  while (rest && wrapped.length < lines - 1 && width(rest, columns) > columns) {
    const head = start(rest, columns)
    const space = rest[head.length] === ' ' ? head.length : head.lastIndexOf(' ')
    const cut = space > 0 ? space : head.length
    if (cut === 0) break
    wrapped.push(rest.slice(0, cut).trimEnd())
    rest = rest.slice(cut).trimStart()
  }
  if (rest)
    wrapped.push(
      clip([piece(rest)], columns)
        .map((part) => part.text)
        .join(''),
    )
  return wrapped
}

/** A finished line, without spaces at its end. */
export function paint(pieces: readonly Piece[], color: boolean): string {
  const line = [...pieces]
  while (line.at(-1)?.text.trim() === '') line.pop()
  const last = line.pop()
  if (last) line.push(piece(last.text.trimEnd(), last.style))
  return line
    .map(({ text, style }) => (color && sgr[style] && text ? `\x1b[${sgr[style]}m${text}\x1b[0m` : text))
    .join('')
}
