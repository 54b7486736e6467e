import { isSpace, type TokenVisitor } from './token.ts'

/**
 * Collects the tokens of `text` into db.query.text (semantic conventions, database spans, sanitization):
 * literals become `?`, comments go, a list of literals behind IN becomes `(?)`, all else stays as it is.
 */
export function sanitizer(text: string): { visit: TokenVisitor; finish: () => string } {
  const pieces: string[] = []
  // What was read but not yet put into `pieces`; it is copied as it stands.
  let pending = 0
  let blank = true

  // `IN (1, 2)`: the list is a candidate from its parenthesis on, and stays one while literals and commas alternate.
  let list: 'no' | 'in' | 'literal' | 'comma' = 'no'
  let listStart = 0

  function flush(end: number): void {
    if (end > pending) pieces.push(text.slice(pending, end))
  }

  function visit(kind: Parameters<TokenVisitor>[0], start: number, end: number): void {
    if (kind === 'space') {
      blank = true
      return
    }
    if (kind === 'comment') {
      flush(start)
      pending = end
      // A comment that alone keeps two tokens apart leaves a blank: `-/**/-` must not become a comment.
      if (!blank && end < text.length && !isSpace(text.charCodeAt(end))) {
        pieces.push(' ')
        blank = true
      }
      return
    }
    blank = false

    if (kind === 'literal' || kind === 'hidden') {
      flush(start)
      pieces.push('?')
      pending = end
      list = kind === 'literal' && list === 'literal' ? 'comma' : 'no'
      return
    }

    const mark = kind === 'mark' ? text[start] : ''
    if (list === 'in' && mark === '(') {
      flush(end)
      pending = end
      listStart = pieces.length
      list = 'literal'
    } else if (list === 'comma' && mark === ',') {
      list = 'literal'
    } else if (list === 'comma' && mark === ')') {
      pieces.length = listStart
      pieces.push('?')
      pending = start
      list = 'no'
    } else {
      list =
        kind === 'word' && end - start === 2 && text.slice(start, end).toUpperCase() === 'IN' ? 'in' : 'no'
    }
  }

  function finish(): string {
    flush(text.length)
    return pieces.join('')
  }

  return { visit, finish }
}
