/** The name of a parameter, or the number of a group that has no name. */
export interface Key {
  readonly name: string | number
}

/** One of the paths that a layer takes. */
export interface Alternative {
  /** As text; or the app's own RegExp. */
  readonly path: string | RegExp
  /** The matched text; undefined where this one does not match. */
  matched(path: string): string | undefined
}

/** What Express 4 makes of a path's end: a route ends there, a mount at a slash or at the end. */
const END = {
  route: /^\^([^]*?)(?:\\\/\?)?\$$/,
  mount: /^\^([^]*?)(?:\\\/\?)?\(\?=\\\/\|\$\)$/,
}

/** How the RegExp of a parameter begins: with its dot or slash, and then the group for the value. */
const PARAMETER = /^\(\?:(?:\\\.)?(?:\\\/)?\((?!\?)/
const CAPTURE = /^\((?:\?<(?![=!])|(?!\?))/

/**
 * Express 4 keeps of its paths only the RegExp that it made of them; each is written again as the app wrote it. A RegExp of
 * the app's own is its own name.
 */
export function alternativesOf(
  { source, flags }: RegExp,
  keys: readonly Key[],
  kind: keyof typeof END,
): readonly Alternative[] {
  let used = 0
  return split(unwrapped(source)).map((part) => {
    const text = END[kind].exec(part)?.[1]
    const regexp = new RegExp(part, flags.replace(/[gy]/g, ''))
    const { written, count } = read(text ?? part, keys.slice(used))
    used += count
    return {
      path: text === undefined ? regexp : written || '/',
      matched: (path) => regexp.exec(path)?.[0],
    }
  })
}

/** Up to 4.20 several paths are in one group. */
function unwrapped(source: string): string {
  return source.startsWith('(?:^') && closing(source, 0) === source.length ? source.slice(3, -1) : source
}

/** The parts of an alternation; of a RegExp that has none, itself. */
function split(source: string): string[] {
  // Only those that Express has joined begin like this.
  if (!source.startsWith('^')) return [source]
  const parts = ['']
  for (let at = 0; at < source.length;) {
    const end = tokenEnd(source, at)
    if (source[at] === '|' && source[end] === '^') parts.push('')
    else parts[parts.length - 1] += source.slice(at, end)
    at = end
  }
  return parts
}

/** The path that became this, and how many keys are of it. */
function read(source: string, keys: readonly Key[]): { written: string; count: number } {
  let written = ''
  let count = 0
  /** Of the groups that are open, whether the path has parentheses there. */
  const open: boolean[] = []
  for (let at = 0; at < source.length;) {
    const rest = source.slice(at)
    if (CAPTURE.test(rest)) {
      const end = closing(source, at)
      const name = keys[count]?.name
      written += typeof name === 'string' ? `:${name}` : '*'
      count += captures(source.slice(at, end))
      at = end
    } else if (rest.startsWith('(?:')) {
      const isParameter = PARAMETER.test(rest)
      open.push(!isParameter)
      if (!isParameter) written += '('
      at += 3
    } else if (rest.startsWith(')')) {
      if (open.pop() === true) written += ')'
      at += 1
    } else {
      const end = tokenEnd(source, at)
      const token = source.slice(at, end)
      written += token === '\\/' || token === '\\.' ? token.slice(1) : token
      at = end
    }
  }
  return { written, count }
}

function captures(source: string): number {
  let count = 0
  for (let at = 0; at < source.length;) {
    const isGroup = source[at] === '('
    if (isGroup && CAPTURE.test(source.slice(at))) count += 1
    at = isGroup ? at + 1 : tokenEnd(source, at)
  }
  return count
}

/** Where the token that begins here is over: an escape, a class, a group, or one character. */
function tokenEnd(source: string, at: number): number {
  switch (source[at]) {
    case '\\':
      return at + 2
    case '[': {
      let end = at + 1
      while (end < source.length && source[end] !== ']') end += source[end] === '\\' ? 2 : 1
      return end + 1
    }
    case '(':
      return closing(source, at)
    default:
      return at + 1
  }
}

/** Where the group that begins here is over. */
function closing(source: string, start: number): number {
  let at = start + 1
  while (at < source.length && source[at] !== ')') at = tokenEnd(source, at)
  return at + 1
}
