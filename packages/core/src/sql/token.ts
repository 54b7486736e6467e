/**
 * What a stretch of SQL is, in PostgreSQL's lexical rules (manual, section 4.1).
 *
 * - `word`: a keyword or an unquoted identifier; `quoted`: a quoted identifier with its quotes
 * - `literal`: a value, with its prefix (`E'…'`) and its sign (`-12`)
 * - `parameter`: `$1`; `mark`: any other single character
 * - `hidden`: from here to the end nothing can be told apart from a value, so all of it counts as one
 */
export type TokenKind = 'space' | 'comment' | 'word' | 'quoted' | 'literal' | 'parameter' | 'mark' | 'hidden'

/** Receives one token: `text.slice(start, end)`. */
export type TokenVisitor = (kind: TokenKind, start: number, end: number) => void

/** The wire protocol counts parameters in 16 bits, so `$` with more digits than this is a value, not one. */
const MAX_PARAMETER_DIGITS = 5

const TAB = 0x09
const NEWLINE = 0x0a
const RETURN = 0x0d
const SPACE = 0x20
const QUOTE = 0x22
const DOLLAR = 0x24
const APOSTROPHE = 0x27
const CLOSE = 0x29
const STAR = 0x2a
const PLUS = 0x2b
const MINUS = 0x2d
const DOT = 0x2e
const SLASH = 0x2f
const SEMICOLON = 0x3b
const CLOSE_BRACKET = 0x5d
const BACKSLASH = 0x5c
const UNDERSCORE = 0x5f

/** True for what separates tokens: space, tab, newline, vertical tab, form feed, carriage return. */
export function isSpace(code: number): boolean {
  return code === SPACE || (code >= TAB && code <= RETURN)
}

function isDigit(code: number): boolean {
  return code >= 0x30 && code <= 0x39
}

/** Letters, underscore and everything beyond ASCII; false for NaN, which is what lies past the end. */
function startsWord(code: number): boolean {
  return (
    (code >= 0x61 && code <= 0x7a) || (code >= 0x41 && code <= 0x5a) || code === UNDERSCORE || code >= 0x80
  )
}

/**
 * Calls `visit` for every token of `text`, in order and without gaps, in time linear in its length.
 *
 * Three things are hidden to the end because reading on would be a guess that could show a value:
 * a literal or a quoted identifier that is never closed; a plain literal with a backslash before a quote,
 * which closes it under `standard_conforming_strings = on` and does not under `off`; and the rows that a
 * script puts behind `COPY … FROM STDIN;`.
 */
export function eachToken(text: string, visit: TokenVisitor): void {
  const length = text.length
  // The token before this one, blanks included, and the one before blanks: signs ask for the first,
  // keywords for the second.
  let before: TokenKind | 'close' = 'space'
  let previous = ''
  let statement: 'opening' | 'copy' | 'rows follow' | 'other' = 'opening'
  let at = 0

  while (at < length) {
    const start = at
    const code = text.charCodeAt(at)
    let kind: TokenKind

    if (isSpace(code)) {
      at = endOfSpace(text, at)
      visit('space', start, at)
      before = 'space'
      continue
    }
    if (isComment(text, at)) {
      at = code === MINUS ? endOfLine(text, at) : endOfBlock(text, at)
      visit('comment', start, at)
      before = 'space'
      continue
    }

    if (startsWord(code)) {
      at = endOfWord(text, at)
      kind = 'word'
      const next = text.charCodeAt(at)
      if (next === APOSTROPHE && at - start === 1 && isPrefix(code)) {
        at = code === 0x45 || code === 0x65 ? endOfEscaped(text, at) : endOfPlain(text, at)
        kind = at < 0 ? 'hidden' : 'literal'
      } else if (next === 0x26 && at - start === 1 && (code === 0x55 || code === 0x75)) {
        const opening = text.charCodeAt(at + 1)
        if (opening === APOSTROPHE) {
          at = endOfPlain(text, at + 1)
          kind = at < 0 ? 'hidden' : 'literal'
        } else if (opening === QUOTE) {
          at = endOfQuoted(text, at + 1)
          kind = at < 0 ? 'hidden' : 'quoted'
        }
      } else if (previous !== '.' && isBoolean(text, start, at)) {
        kind = 'literal'
      }
    } else if (code === APOSTROPHE) {
      // Only an escape character can be written `'\'`, and only that way under the standard setting.
      at = previous === 'ESCAPE' && isLoneBackslash(text, at) ? at + 3 : endOfPlain(text, at)
      kind = at < 0 ? 'hidden' : 'literal'
    } else if (code === QUOTE) {
      at = endOfQuoted(text, at)
      kind = at < 0 ? 'hidden' : 'quoted'
    } else if (startsNumber(text, at)) {
      at = endOfNumber(text, at)
      kind = 'literal'
    } else if ((code === PLUS || code === MINUS) && !endsOperand(before) && startsNumber(text, at + 1)) {
      at = endOfNumber(text, at + 1)
      kind = 'literal'
    } else if (code === DOLLAR) {
      kind = 'mark'
      at++
      if (isDigit(text.charCodeAt(at))) {
        while (isDigit(text.charCodeAt(at))) at++
        kind = at - start - 1 > MAX_PARAMETER_DIGITS ? 'literal' : 'parameter'
      } else {
        const tag = endOfTag(text, start)
        if (tag > 0) {
          at = endOfDollars(text, start, tag)
          kind = at < 0 ? 'hidden' : 'literal'
        }
      }
    } else {
      kind = 'mark'
      at++
    }

    if (at < 0) at = length
    visit(kind, start, at)
    before = kind === 'mark' && (code === CLOSE || code === CLOSE_BRACKET) ? 'close' : kind

    previous = kind === 'word' ? shortWord(text, start, at) : kind === 'mark' && code === DOT ? '.' : ''
    if (kind === 'mark' && code === SEMICOLON) {
      if (statement === 'rows follow' && endOfSpace(text, at) < length) {
        visit('hidden', at, length)
        return
      }
      statement = 'opening'
    } else if (statement === 'opening') {
      statement = previous === 'COPY' ? 'copy' : 'other'
    } else if (statement === 'copy' && previous === 'STDIN') {
      statement = 'rows follow'
    }
  }
}

function endOfSpace(text: string, at: number): number {
  while (isSpace(text.charCodeAt(at))) at++
  return at
}

function endOfWord(text: string, at: number): number {
  for (let code = text.charCodeAt(++at); ; code = text.charCodeAt(++at)) {
    if (!startsWord(code) && !isDigit(code) && code !== DOLLAR) return at
  }
}

function isComment(text: string, at: number): boolean {
  const code = text.charCodeAt(at)
  return (
    (code === MINUS && text.charCodeAt(at + 1) === MINUS) ||
    (code === SLASH && text.charCodeAt(at + 1) === STAR)
  )
}

/** The line's end is not part of the comment. */
function endOfLine(text: string, at: number): number {
  for (; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === NEWLINE || code === RETURN) break
  }
  return at
}

/** Block comments nest. One that is never closed reaches to the end, which shows nothing. */
function endOfBlock(text: string, at: number): number {
  let depth = 0
  while (at < text.length) {
    const code = text.charCodeAt(at)
    const next = text.charCodeAt(at + 1)
    if (code === SLASH && next === STAR) {
      depth++
      at += 2
    } else if (code === STAR && next === SLASH) {
      depth--
      at += 2
      if (depth === 0) return at
    } else {
      at++
    }
  }
  return text.length
}

/** Past the closing quote of `"…"`, in which a quote is doubled; -1 if there is none. */
function endOfQuoted(text: string, at: number): number {
  for (let close = text.indexOf('"', at + 1); close >= 0; close = text.indexOf('"', close + 2)) {
    if (text.charCodeAt(close + 1) !== QUOTE) return close + 1
  }
  return -1
}

/** Past the closing quote of `'…'`, in which a quote is doubled; -1 if there is none, or none that is sure. */
function endOfPlain(text: string, at: number): number {
  for (let close = text.indexOf("'", at + 1); close >= 0; close = text.indexOf("'", close + 2)) {
    let backslashes = 0
    while (text.charCodeAt(close - 1 - backslashes) === BACKSLASH) backslashes++
    if (backslashes % 2 === 1) return -1
    if (text.charCodeAt(close + 1) !== APOSTROPHE) return close + 1
  }
  return -1
}

/** Past the closing quote of `E'…'`, in which a backslash takes the next character with it; -1 if there is none. */
function endOfEscaped(text: string, at: number): number {
  for (at++; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === BACKSLASH) at++
    else if (code === APOSTROPHE) {
      if (text.charCodeAt(at + 1) !== APOSTROPHE) return at + 1
      at++
    }
  }
  return -1
}

function isLoneBackslash(text: string, at: number): boolean {
  return (
    text.charCodeAt(at + 1) === BACKSLASH &&
    text.charCodeAt(at + 2) === APOSTROPHE &&
    text.charCodeAt(at + 3) !== APOSTROPHE
  )
}

/** Past the second dollar of `$tag$` or `$$`; 0 if this dollar opens no such tag. */
function endOfTag(text: string, at: number): number {
  const end = startsWord(text.charCodeAt(at + 1)) ? endOfTagName(text, at + 1) : at + 1
  return text.charCodeAt(end) === DOLLAR ? end + 1 : 0
}

function endOfTagName(text: string, at: number): number {
  while (startsWord(text.charCodeAt(at)) || isDigit(text.charCodeAt(at))) at++
  return at
}

/**
 * Past the closing tag of a dollar-quoted literal whose opening tag is `text.slice(at, bodyAt)`; -1 if there is none.
 * A tag holds no dollar inside, so a comparison never runs past the next one: linear, however the text is made.
 */
function endOfDollars(text: string, at: number, bodyAt: number): number {
  const tag = text.slice(at, bodyAt)
  for (let close = text.indexOf('$', bodyAt); close >= 0; close = text.indexOf('$', close + 1)) {
    if (text.startsWith(tag, close)) return close + tag.length
  }
  return -1
}

function startsNumber(text: string, at: number): boolean {
  return isDigit(text.charCodeAt(at)) || (text.charCodeAt(at) === DOT && isDigit(text.charCodeAt(at + 1)))
}

/**
 * Takes all that can belong to a number in any notation (`0xFF`, `1_000`, `12.5e-3`) and also what cannot
 * but sticks to it (`12abc`), which is an error in PostgreSQL and may well be a value without its quotes.
 */
function endOfNumber(text: string, at: number): number {
  for (; ; at++) {
    const code = text.charCodeAt(at)
    if (code === DOT) {
      if (text.charCodeAt(at + 1) === DOT) return at
    } else if (code === PLUS || code === MINUS) {
      const exponent = text.charCodeAt(at - 1)
      if ((exponent !== 0x65 && exponent !== 0x45) || !isDigit(text.charCodeAt(at + 1))) return at
    } else if (!startsWord(code) && !isDigit(code)) {
      return at
    }
  }
}

/** After an operand `-1` is a subtraction, unless the operand was a literal: `99+100` is `??` in the conventions. */
function endsOperand(before: TokenKind | 'close'): boolean {
  return before === 'word' || before === 'quoted' || before === 'parameter' || before === 'close'
}

/** B, E, N, X: the letters that make one literal with the apostrophe behind them. */
function isPrefix(code: number): boolean {
  const lower = code | 0x20
  return lower === 0x62 || lower === 0x65 || lower === 0x6e || lower === 0x78
}

function isBoolean(text: string, start: number, end: number): boolean {
  const word = shortWord(text, start, end)
  return word === 'TRUE' || word === 'FALSE'
}

/** The word in capitals if it is short enough to be one that this file asks for, else nothing. */
function shortWord(text: string, start: number, end: number): string {
  return end - start <= 'ESCAPE'.length ? text.slice(start, end).toUpperCase() : ''
}
