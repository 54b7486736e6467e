import type { TokenKind, TokenVisitor } from './token.ts'

/** In UTF-16 units; the convention's limit for db.query.summary. */
const SUMMARY_LENGTH = 255

/** No longer word is a keyword below. */
const KEYWORD_LENGTH = 'CONFIGURATION'.length

/** Nested parentheses. Queries have some ten; deeper ones are not read for the summary, which ends there. */
const DEPTH_LIMIT = 500

function words(list: string): ReadonlySet<string> {
  return new Set(list.split(' '))
}

/** Statements whose clauses name the targets. */
const QUERIES = words('SELECT INSERT UPDATE DELETE MERGE REPLACE UPSERT VALUES')
/** Those of them that only read. */
const READS = words('SELECT VALUES')
/** Statements of the form `verb [modifiers] kind name`. */
const DEFINITIONS = words('CREATE ALTER DROP REFRESH REINDEX')
/** Statements of the form `verb name`, and those of them that take a list of names. */
const NAMERS = words(
  'ANALYSE ANALYZE CALL CLUSTER COPY EXEC LISTEN LOCK NOTIFY RESET SET SHOW START TABLE TRUNCATE UNLISTEN VACUUM',
)
const LISTERS = words('ANALYSE ANALYZE DROP LOCK TRUNCATE VACUUM')
/** Statements that carry another one. */
const CARRIERS = words('EXPLAIN PREPARE DECLARE')

const KINDS = words(
  'AGGREGATE CAST COLLATION CONFIGURATION CONVERSION DATABASE DICTIONARY DOMAIN EXTENSION FUNCTION GROUP INDEX LANGUAGE METHOD OPERATOR POLICY PROCEDURE PUBLICATION ROLE ROUTINE RULE SCHEMA SEQUENCE SERVER STATISTICS SUBSCRIPTION SYSTEM TABLE TABLESPACE TRIGGER TYPE USER VIEW WRAPPER',
)
/** Kinds whose body may hold whole statements between BEGIN and END. */
const ROUTINES = words('FUNCTION PROCEDURE ROUTINE TRIGGER')
const MODIFIERS = words(
  'ACCESS CLUSTERED CONCURRENTLY CONSTRAINT DATA EVENT FOREIGN GLOBAL LOCAL MATERIALIZED NONCLUSTERED OR PROCEDURAL RECURSIVE REPLACE SEARCH TEMP TEMPORARY TEXT TRUSTED UNIQUE UNLOGGED',
)

/** What may stand between the word that announces a name and the name. */
const BEFORE_TABLE = words('INTO LATERAL ONLY TEMP TEMPORARY UNLOGGED')
const BEFORE_DEFINED = words('CONCURRENTLY EXISTS IF NOT ON ONLY')
const BEFORE_NAMED = words('ANALYZE BINARY FREEZE FULL LOCAL ONLY SESSION TABLE VERBOSE')

const SET_OPERATIONS = words('UNION INTERSECT EXCEPT')
const AFTER_TARGETS = words(
  'EXCEPT FETCH FOR GROUP HAVING INTERSECT LIMIT OFFSET ORDER RETURNING SET UNION VALUES WHEN WHERE WINDOW',
)

/** What one pair of parentheses, or the statement around all of them, is in the middle of. */
interface Level {
  /** Which words, if they come next, are an operation: any, those of a query, or only what is reserved for one. */
  opens: 'any' | 'query' | 'reserved' | 'no'
  /** The operation, in capitals. */
  verb: string
  /** FROM, JOIN, INTO announce targets; elsewhere they belong to functions, as in `extract(year FROM x)`. */
  query: boolean
  /** The next name is a target. */
  wants: boolean
  /** A comma announces a further target. */
  lists: boolean
  /** The next target is written to, so it is no common table. */
  writes: boolean
  /** It has a JOIN: the USING behind it holds columns. */
  joins: boolean
  /** Between WITH and its main operation: the definitions of common tables. */
  with: 'no' | 'name' | 'body'
  /** The common table being defined; it becomes known behind its definition. */
  common: string
}

function newLevel(opens: Level['opens']): Level {
  return {
    opens,
    verb: '',
    query: false,
    wants: false,
    lists: false,
    writes: false,
    joins: false,
    with: 'no',
    common: '',
  }
}

/**
 * Collects the tokens of `text` into db.query.summary (semantic conventions, database spans, generating a
 * summary of the query): operations and their targets in the query's order and spelling, at most 255
 * characters cut between two of them, without literals, comments or line breaks.
 *
 * Where the conventions leave room: WITH is no operation and a common table no target, so that the tables
 * behind it show; the SELECT behind UNION, INTERSECT and EXCEPT is not repeated; neighbouring statements
 * with the same summary count once, since their number is no name; savepoints, cursors and prepared
 * statements are not named, since drivers number them.
 */
export function summarizer(text: string): { visit: TokenVisitor; finish: () => string } {
  const parts: string[] = []
  let length = 0
  let done = false

  let levels: Level[] = [newLevel('any')]
  let level = levels[0] as Level
  let commons = new Set<string>()
  let recursive = false
  // Nothing more to learn before the statement's end.
  let silent = false
  // A definition whose kind comes next, then the body of a routine and how many END it still needs.
  let kindNext = false
  let routine = false
  let body = 0
  // The SELECT to come is the second arm of a set operation.
  let arm = false
  // The token before, blanks aside: a word in capitals, a mark, or '' for anything else.
  let last = ''

  let statementStart = 0
  let statementBefore = ''

  // The name being read, part by part: schema, dot, table.
  let name: string[] = []

  function add(part: string): void {
    const longer = length + part.length + (parts.length > 0 ? 1 : 0)
    if (longer > SUMMARY_LENGTH) {
      done = true
      return
    }
    // Identifiers may hold line breaks, at least beyond ASCII; a span's name may not.
    parts.push(part.replace(/[\p{Cc}\p{Zl}\p{Zp}]/gu, ' '))
    length = longer
  }

  function visit(kind: TokenKind, start: number, end: number): void {
    if (done || kind === 'space' || kind === 'comment') return
    const isName = kind === 'word' || kind === 'quoted'
    if (name.length > 0) {
      const dotted = name.at(-1) === '.'
      if (dotted ? isName : kind === 'mark' && text[start] === '.') {
        name.push(dotted ? text.slice(start, end) : '.')
        return
      }
      finishName()
      if (done) return
    }

    const before = last
    if (kind === 'word') {
      last = end - start <= KEYWORD_LENGTH ? text.slice(start, end).toUpperCase() : ''
      if (before !== '.') onWord(last, before, start, end)
    } else if (kind === 'mark') {
      last = text[start] ?? ''
      onMark(last, before)
    } else {
      last = ''
      if (kind === 'quoted' && before !== '.') onName(start, end)
      else level.wants = false
      level.opens = 'no'
    }
    if (kind !== 'word' && last !== '(') arm = false
  }

  function onWord(word: string, before: string, start: number, end: number): void {
    if (silent) {
      if (routine) countBody(word)
      return
    }
    if (kindNext) {
      if (levels.length === 1) onKind(word, start, end)
      return
    }
    // A name that the app gives, which may be any word.
    if (before === 'AS' && level.query && level.with === 'no') {
      last = ''
      level.opens = 'no'
      arm = false
      return
    }
    const { opens } = level
    if (opens === 'any' && level.verb === 'EXPLAIN' && BEFORE_NAMED.has(word)) return
    level.opens = 'no'
    const opening =
      word === 'SELECT' ||
      opens === 'any' ||
      (opens === 'query' && QUERIES.has(word)) ||
      (opens === 'reserved' && word === 'VALUES') ||
      (level.with === 'body' && before === ')' && QUERIES.has(word))
    if (word === 'WITH' && (opens !== 'no' || level.verb === 'INSERT')) {
      level.with = 'name'
      recursive = false
    } else if (opening) {
      operate(word, opens, start, end)
    } else if (level.with !== 'no') {
      onCommon(word, before, start, end)
    } else if (level.verb === 'PREPARE' && word === 'AS') {
      level.opens = 'any'
    } else if (!level.query || !onClause(word, before)) {
      onName(start, end)
    }
    arm = SET_OPERATIONS.has(word) || (arm && (word === 'ALL' || word === 'DISTINCT'))
  }

  function operate(word: string, opens: Level['opens'], start: number, end: number): void {
    const quiet = (arm && word === 'SELECT') || (word === 'VALUES' && opens !== 'any')
    if (!quiet) add(text.slice(start, end))
    level.verb = word
    level.with = 'no'
    level.query = QUERIES.has(word)
    level.writes = level.query && !READS.has(word)
    level.wants = word === 'UPDATE' || word === 'MERGE' || NAMERS.has(word)
    level.lists = LISTERS.has(word)
    kindNext = DEFINITIONS.has(word)
    if (word === 'EXPLAIN') level.opens = 'any'
    silent = !level.query && !level.wants && !kindNext && !CARRIERS.has(word)
  }

  function onKind(word: string, start: number, end: number): void {
    level.opens = 'no'
    if (MODIFIERS.has(word)) return
    kindNext = false
    if (KINDS.has(word)) {
      add(text.slice(start, end))
      level.wants = true
      routine = ROUTINES.has(word)
    } else {
      silent = true
    }
  }

  function countBody(word: string): void {
    if (word === 'BEGIN' || (word === 'CASE' && body > 0)) body++
    else if (word === 'END' && body > 0) body--
  }

  /** True if the word is a clause of the query, not a name. */
  function onClause(word: string, before: string): boolean {
    if (word === 'FROM') {
      if (before === 'DISTINCT') return true
      level.wants = level.lists = true
    } else if (word === 'JOIN') {
      level.wants = level.lists = level.joins = true
    } else if (word === 'INTO') {
      level.wants = true
      level.lists = false
    } else if (word === 'USING' && !level.joins && (level.verb === 'DELETE' || level.verb === 'MERGE')) {
      level.wants = level.lists = true
    } else if (AFTER_TARGETS.has(word)) {
      level.wants = level.lists = false
    } else {
      return false
    }
    return true
  }

  function onCommon(word: string, before: string, start: number, end: number): void {
    if (level.with !== 'name') return
    if (word === 'RECURSIVE' && before === 'WITH') {
      recursive = true
      return
    }
    level.common = foldedName(text.slice(start, end))
    level.with = 'body'
    // Only a recursive definition can name itself; in another one the name is a table of that name.
    if (recursive) commons.add(level.common)
  }

  function onName(start: number, end: number): void {
    if (silent) return
    if (level.with === 'name') {
      onCommon('', '', start, end)
      return
    }
    if (!level.wants) return
    const before = level.query ? BEFORE_TABLE : DEFINITIONS.has(level.verb) ? BEFORE_DEFINED : BEFORE_NAMED
    if (before.has(last)) return
    name.push(text.slice(start, end))
  }

  function finishName(): void {
    if (name.length === 0) return
    if (name.at(-1) === '.') name.pop()
    const [only = ''] = name
    const isCommon = level.query && !level.writes && name.length === 1 && commons.has(foldedName(only))
    if (!isCommon) add(name.join(''))
    name = []
    level.wants = level.writes = false
    if (!level.query && !level.lists) silent = true
  }

  function onMark(mark: string, before: string): void {
    if (mark === '(') {
      openParenthesis(before)
    } else if (mark === ')') {
      closeParenthesis()
    } else if (mark === ';') {
      if (!silent || (levels.length === 1 && body === 0)) endStatement()
    } else if (mark === ',') {
      if (level.with === 'body') level.with = 'name'
      else if (level.lists) level.wants = true
    } else if (mark !== '.') {
      level.opens = 'no'
      level.wants = false
    }
  }

  function openParenthesis(before: string): void {
    const definition = level.with === 'body' && (before === 'AS' || before === 'MATERIALIZED')
    const inner = newLevel(silent ? 'no' : definition ? 'query' : 'reserved')
    // `FROM (a JOIN b …)`
    if (level.query && level.wants) inner.query = inner.wants = inner.lists = true
    if (level.query || level.verb === 'COPY') level.wants = false
    if (level.verb !== 'EXPLAIN' && level.verb !== 'PREPARE') level.opens = 'no'
    level = inner
    levels.push(inner)
    if (levels.length > DEPTH_LIMIT) done = true
  }

  function closeParenthesis(): void {
    if (levels.length === 1) return
    levels.pop()
    level = levels.at(-1) as Level
    if (level.with === 'body') commons.add(level.common)
  }

  function endStatement(): void {
    const statement = parts.slice(statementStart).join(' ')
    if (statement !== '' && statement === statementBefore) {
      parts.length = statementStart
      length = parts.join(' ').length
    }
    statementStart = parts.length
    if (statement !== '') statementBefore = statement
    level = newLevel('any')
    levels = [level]
    commons = new Set()
    silent = kindNext = routine = arm = false
    body = 0
    last = ''
  }

  function finish(): string {
    finishName()
    if (!done) endStatement()
    return parts.join(' ')
  }

  return { visit, finish }
}

/** The name PostgreSQL compares: lower case, unless it is quoted. */
function foldedName(name: string): string {
  return name.startsWith('"') && name.endsWith('"') ? name.slice(1, -1) : name.toLowerCase()
}
