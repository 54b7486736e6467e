import { describeSql } from '@throughline/core/sql'
import * as fc from 'fast-check'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, it } from 'vitest'
import vectors from '../vectors/sql.json' with { type: 'json' }

/** The fastest of some runs, in milliseconds. */
function time(query: string): number {
  const runs = Array.from({ length: 5 }, () => {
    const start = performance.now()
    describeSql(query)
    return performance.now() - start
  })
  return Math.min(...runs)
}

describe('the official test set of the semantic conventions', () => {
  // The one deviation: the conventions' own rule is `{operation} {target}`, and this case drops the target.
  const ours: Record<string, string> = { update_set_parenthesized_constant: 'UPDATE T' }

  for (const { name, query, text, summary } of vectors.cases) {
    it(`is met: ${name}`, () => {
      const described = describeSql(query)
      expect(text).toContain(described.text)
      expect(described.summary).toBe(ours[name] ?? summary)
    })
  }
})

describe('the text a span shows', () => {
  const shown: Record<string, readonly [string, string]> = {
    'no string': [`SELECT * FROM users WHERE name='bob'`, `SELECT * FROM users WHERE name=?`],
    'no doubled quotes': [`SELECT 'a''b''''', 1`, `SELECT ?, ?`],
    'no escape string': [String.raw`SELECT E'it\'s \\', e'\'', E'a''b' FROM t`, `SELECT ?, ?, ? FROM t`],
    'no unicode, bit or national string': [
      `SELECT U&'\\0061' UESCAPE '!', B'101', x'1F', N'é' FROM t`,
      `SELECT ? UESCAPE ?, ?, ?, ? FROM t`,
    ],
    'no dollar-quoted body': [`SELECT $$it's$$, $a$x $$ $b$ y$a$, a$1`, `SELECT ?, ?, a$1`],
    'no anonymous block': [`DO $do$ BEGIN DELETE FROM t; END $do$ LANGUAGE plpgsql`, `DO ? LANGUAGE plpgsql`],
    'no number in any notation': [
      `SELECT 1_000, 0x1F, 0b1, 0o7, 1.5e+3, 1e-3, .5, 5., -1, 12abc`,
      `SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?`,
    ],
    'no boolean': [`SELECT TRUE, false, t.true FROM t`, `SELECT ?, ?, t.true FROM t`],
    'no comment': [`SELECT 1--x'\n/* a /* b */ ' */FROM/**/t /* c */`, `SELECT ?\nFROM t `],
    'no comment in front': [`/* app='x' */ SELECT 1`, ` SELECT ?`],
    'a list as one value': [`WHERE a IN (1, 'b', -2) AND b in('x')`, `WHERE a IN (?) AND b in(?)`],
    'a list with more than literals in it': [`WHERE a IN (1, b, NULL, (2))`, `WHERE a IN (?, b, NULL, (?))`],
    'positional parameters': [`WHERE a = $1 AND b IN ($2, $12)`, `WHERE a = $1 AND b IN ($2, $12)`],
    'no amount of dollars': [`SELECT $1234567`, `SELECT ?`],
    'casts and lengths': [
      `SELECT 'x'::text, 1::int4, a::varchar(255)`,
      `SELECT ?::text, ?::int4, a::varchar(?)`,
    ],
    'arrays and slices': [`SELECT ARRAY[1,2], a[1:2], '{1,2}'::int[]`, `SELECT ARRAY[?,?], a[?:?], ?::int[]`],
    'json operators': [
      `SELECT a->'b'->>1, a#>'{c}', a ? 'd', a ?| $1, a @> '{"e":1}', a->-1`,
      `SELECT a->?->>?, a#>?, a ? ?, a ?| $1, a @> ?, a->?`,
    ],
    subtraction: [`SELECT a-1, f(x)-1, b[c]-1, $1-1, a - 1`, `SELECT a-?, f(x)-?, b[c]-?, $1-?, a - ?`],
    'quoted identifiers': [
      `SELECT "a""b", "it's", U&"d" FROM "s"."T1"`,
      `SELECT "a""b", "it's", U&"d" FROM "s"."T1"`,
    ],
    'names with dollars': [`SELECT a$b$, c FROM t$$`, `SELECT a$b$, c FROM t$$`],
    'names with digits': [`SELECT c3po FROM covid19.t_2`, `SELECT c3po FROM covid19.t_2`],
    'typed literals': [`SELECT date '2020-01-01', interval'1 day'`, `SELECT date ?, interval?`],
    'a backslash as the escape character': [
      `WHERE a LIKE $1 ESCAPE '\\' AND b = 'c'`,
      `WHERE a LIKE $1 ESCAPE ? AND b = ?`,
    ],
  }
  for (const [what, [query, text]] of Object.entries(shown)) {
    it(`has ${what}`, () => expect(describeSql(query).text).toBe(text))
  }

  const hidden: Record<string, readonly [string, string]> = {
    'a string that is never closed': [`SELECT 'a', 'secret FROM t`, `SELECT ?, ?`],
    'an escape string that is never closed': [`SELECT E'secret\\' FROM t`, `SELECT ?`],
    'a quoted name that is never closed': [`SELECT 1 FROM "secret`, `SELECT ? FROM ?`],
    'a dollar quote that is never closed': [`SELECT $a$ secret $b$ secret $ a$`, `SELECT ?`],
    'a comment that is never closed': [`SELECT a /* secret /* */`, `SELECT a `],
    'a string whose end depends on a server setting': [
      `SELECT 'it\\'s secret', 'that\\'s' FROM t`,
      `SELECT ?`,
    ],
    'a doubled quote that depends on it': [`SELECT 'a\\'' , 'secret' FROM t`, `SELECT ?`],
    'the rows behind COPY': [`COPY t (a) FROM STDIN;\n1\tsecret\n\\.\n`, `COPY t (a) FROM STDIN;?`],
  }
  for (const [what, [query, text]] of Object.entries(hidden)) {
    it(`ends before ${what}`, () => {
      const described = describeSql(query)
      expect(described.text).toBe(text)
      expect(described.summary).not.toContain('secret')
    })
  }

  it('reads on behind a backslash that cannot be mistaken', () => {
    expect(describeSql(`SELECT 'a\\\\', 'b\\n' FROM t`).text).toBe('SELECT ?, ? FROM t')
  })

  it('is the very string of the caller if there was nothing to hide', () => {
    const query = 'SELECT * FROM t WHERE id = $1'
    expect(describeSql(query)).toEqual({ text: query, summary: 'SELECT t', isPlain: true })
  })

  it('stands with one ? for what lies behind the first 128 Ki characters', () => {
    const head = 'SELECT a FROM t WHERE '
    const query = `${head}${'a = b OR '.repeat(15_000)} a = 'secret'`
    const { text, summary } = describeSql(query)
    expect(text).toBe(`${query.slice(0, 128 * 1024)}?`)
    expect(summary).toBe('SELECT t')
    expect(describeSql(text).text).toBe(text)
    expect(describeSql(`${head}'${'secret '.repeat(20_000)}' OR a = 'secret'`).text).toBe(`${head}??`)
  })
})

describe('the summary that names a span', () => {
  const summaries: Record<string, string> = {
    '': '',
    ' \n\t': '',
    '-- nothing\n/* at all */;;': '',
    "'SELECT a FROM b'": '',
    'SELECT * FROM users WHERE id=$1': 'SELECT users',
    '/* app */ SELECT\n1\nFROM -- the\n"Us\ners"': 'SELECT "Us ers"',
    'select * from public . "Order" o left join x.y using (id), z': 'select public."Order" x.y z',
    'SELECT extract(year FROM ts), a IS DISTINCT FROM b, substring(c FROM 1) FROM t': 'SELECT t',
    'SELECT a FROM t WHERE b IN (SELECT c FROM u) ORDER BY d, e': 'SELECT t SELECT u',
    'SELECT * FROM (a JOIN b USING (id)) JOIN LATERAL (SELECT 1 FROM c) d ON true, ONLY e':
      'SELECT a b SELECT c e',
    'SELECT * FROM generate_series(1, 2) WITH ORDINALITY AS g(a, b), t': 'SELECT generate_series t',
    'SELECT * FROM t FOR NO KEY UPDATE OF t SKIP LOCKED': 'SELECT t',
    'SELECT t.select, t.from FROM t': 'SELECT t',
    'SELECT a AS from, b AS to, c AS select, d AS distinct FROM t AS v JOIN u AS w USING (a)': 'SELECT t u',
    'UPDATE t AS v SET a = 1 RETURNING a AS into, b': 'UPDATE t',
    'WITH a AS MATERIALIZED (SELECT b AS with FROM t) SELECT c AS union, d FROM a AS e, u':
      'SELECT t SELECT u',
    'SELECT 1 FROM a UNION ALL (SELECT 2 FROM b) EXCEPT SELECT 3 FROM c': 'SELECT a b c',
    'SELECT * FROM (VALUES (1, 2)) v': 'SELECT',
    'VALUES (1)': 'VALUES',
    'TABLE t': 'TABLE t',
    'SELECT * FROM "a""b"': 'SELECT "a""b"',
    'EXPLAIN (ANALYZE) UPDATE t SET a = 1': 'EXPLAIN UPDATE t',
    'SELECT * FROM U&"d", t': 'SELECT U&"d" t',
    'DELETE FROM t USING u JOIN v USING (id), w': 'DELETE t u v w',
    'INSERT INTO t (update, "a") VALUES (1, 2) ON CONFLICT (a) DO UPDATE SET b = 1 RETURNING c': 'INSERT t',
    'INSERT INTO t SELECT a, b FROM u, v': 'INSERT t SELECT u v',
    'UPDATE ONLY t SET a = 1, b = 2 FROM u, v WHERE t.id = u.id': 'UPDATE t u v',
    'DELETE FROM t USING u, v WHERE a': 'DELETE t u v',
    'DELETE FROM t WHERE a IS DISTINCT FROM b': 'DELETE t',
    'DELETE FROM t USING (u JOIN v USING (id)) JOIN w USING (id)': 'DELETE t u v w',
    'MERGE INTO t USING (u LEFT JOIN v ON a) w ON b WHEN MATCHED THEN DELETE': 'MERGE t u v',
    'MERGE INTO t USING u ON a WHEN MATCHED THEN UPDATE SET b = 1 WHEN NOT MATCHED THEN INSERT (c) VALUES (d)':
      'MERGE t u',
    'WITH a AS (SELECT * FROM t), b (c) AS NOT MATERIALIZED (DELETE FROM u RETURNING *) SELECT * FROM a, b, v':
      'SELECT t DELETE u SELECT v',
    'WITH RECURSIVE r AS (SELECT 1 FROM t UNION SELECT 2 FROM r, u) UPDATE v SET a = 1 FROM R':
      'SELECT t u UPDATE v',
    'WITH "T" AS (SELECT 1 FROM "T") SELECT * FROM "T", t': 'SELECT "T" SELECT t',
    'WITH t AS (DELETE FROM u RETURNING *) INSERT INTO t SELECT * FROM t': 'DELETE u INSERT t SELECT',
    'WITH t AS (SELECT 1 FROM u) DELETE FROM t USING t AS w': 'SELECT u DELETE t',
    'INSERT INTO t WITH a AS (SELECT 1 FROM u) SELECT * FROM a': 'INSERT t SELECT u SELECT',
    'INSERT INTO t WITH a AS MATERIALIZED (DELETE FROM u RETURNING *) SELECT * FROM a':
      'INSERT t DELETE u SELECT',
    'BEGIN; INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); UPDATE u SET a = 1; COMMIT':
      'BEGIN INSERT t UPDATE u COMMIT',
    'START TRANSACTION ISOLATION LEVEL SERIALIZABLE': 'START TRANSACTION',
    'SAVEPOINT sp_17': 'SAVEPOINT',
    'ROLLBACK TO SAVEPOINT sp_17': 'ROLLBACK',
    "SET LOCAL app.user = 'bob'": 'SET app.user',
    'SHOW search_path': 'SHOW search_path',
    'COPY s.t (a, b) FROM STDIN WITH (FORMAT csv)': 'COPY s.t',
    "COPY (SELECT a FROM t) TO '/tmp/x'": 'COPY SELECT t',
    'CALL s.proc(1, $1)': 'CALL s.proc',
    'DO $$ BEGIN PERFORM 1 FROM t; END $$': 'DO',
    'VACUUM (FULL, ANALYZE) t, u (a, b)': 'VACUUM t u',
    ANALYZE: 'ANALYZE',
    'LISTEN jobs': 'LISTEN jobs',
    "NOTIFY jobs, 'x'": 'NOTIFY jobs',
    'TRUNCATE TABLE ONLY t, u CASCADE': 'TRUNCATE t u',
    'LOCK TABLE t IN ACCESS EXCLUSIVE MODE': 'LOCK t',
    'EXPLAIN (ANALYZE, FORMAT json) SELECT 1 FROM t': 'EXPLAIN SELECT t',
    'EXPLAIN ANALYZE VERBOSE WITH a AS (SELECT 1 FROM t) DELETE FROM u': 'EXPLAIN SELECT t DELETE u',
    'PREPARE p1 (int) AS UPDATE t SET a = $1': 'PREPARE UPDATE t',
    'EXECUTE p1 (7)': 'EXECUTE',
    'EXPLAIN ANALYZE EXECUTE p1 (7); DEALLOCATE p1': 'EXPLAIN EXECUTE DEALLOCATE',
    'DECLARE c1 CURSOR FOR SELECT * FROM t': 'DECLARE SELECT t',
    'FETCH 100 FROM c1': 'FETCH',
    'GRANT SELECT ON t TO bob': 'GRANT',
    'CREATE TABLE IF NOT EXISTS "S"."T" AS SELECT * FROM u': 'CREATE TABLE "S"."T"',
    'CREATE OR REPLACE TEMP VIEW v AS SELECT 1 FROM t; SELECT 2 FROM u': 'CREATE VIEW v SELECT u',
    'CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)': 'CREATE INDEX i',
    'CREATE INDEX ON t (a)': 'CREATE INDEX t',
    'CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END FROM t; SELECT 2; END; DROP TABLE t, u':
      'CREATE FUNCTION f DROP TABLE t u',
    'CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; DELETE FROM v); SELECT 1 FROM w':
      'CREATE RULE r SELECT w',
    'REFRESH MATERIALIZED VIEW CONCURRENTLY v': 'REFRESH VIEW v',
    'CREATE TEXT SEARCH CONFIGURATION c (COPY = english)': 'CREATE CONFIGURATION c',
    'ALTER TABLE IF EXISTS ONLY t ADD COLUMN a int, ADD b int': 'ALTER TABLE t',
  }
  for (const [query, summary] of Object.entries(summaries)) {
    it(`is "${summary}" for ${JSON.stringify(query)}`, () => expect(describeSql(query).summary).toBe(summary))
  }

  it('is cut between two names at 255 characters', () => {
    const tables = Array.from({ length: 60 }, (_, i) => `table_${i}`)
    const summary = describeSql(`SELECT * FROM ${tables.join(', ')}`).summary
    expect(summary.length).toBeLessThanOrEqual(255)
    expect(`SELECT ${tables.join(' ')}`.startsWith(`${summary} `)).toBe(true)
    expect(summary.length).toBeGreaterThan(255 - ' table_00'.length)

    const exact = 'x'.repeat(255 - 'SELECT '.length)
    expect(describeSql(`SELECT * FROM ${exact}`).summary).toBe(`SELECT ${exact}`)
    expect(describeSql(`SELECT * FROM ${exact}x, t`).summary).toBe('SELECT')
  })
})

describe('whatever the application sends', () => {
  // Every literal and comment below carries one of these; nothing else does.
  const WORD = 'zqz'
  const NUMBER = '98765'

  const junk = fc.array(
    fc.constantFrom('"', '\\', '--', '/*', '*/', ';', '?', '\n', 'é', ' ', '1', '(', WORD),
    { maxLength: 6 },
  )
  const inner = junk.map((parts) => `${WORD}${parts.join('')}`)
  const quoted = inner.map((body) => body.replaceAll("'", "''"))
  const digits = fc.nat(9999).map((n) => `${NUMBER}${n}`)
  const literal = fc.oneof(
    fc
      .tuple(fc.constantFrom('', '', 'B', 'x', 'N', 'U&', '-'), quoted)
      .map(([prefix, body]) => `${prefix}'${body}'''`),
    inner.map((body) => `E'${body.replaceAll('\\', '\\\\')}\\''`),
    fc.tuple(fc.constantFrom('', 'a', '_x1'), inner).map(([tag, body]) => `$${tag}$${body}$${tag}$`),
    fc
      .tuple(fc.constantFrom('', '-', '+', '.', '-.'), digits, fc.constantFrom('', 'e-5', '.5', '_000'))
      .map((n) => n.join('')),
    digits.map((n) => `0x${n}`),
  )
  const comment = fc.constantFrom(`-- ${WORD} it's $$ /*\n`, `/* ${WORD} ' " $$ /* '${NUMBER}' */ -- */`)
  const code = fc.constantFrom(
    ...'SELECT FROM t WHERE a = IN ( ) , ; JOIN "b""c" "it\'s" $1 -> ? @> :: int INSERT INTO s.u VALUES UPDATE SET UNION WITH AS COPY STDIN ESCAPE CREATE TABLE FUNCTION BEGIN END [ ] - + * . true U E'.split(
      ' ',
    ),
  )
  const gap = fc.constantFrom(' ', '\n', '\t', '/**/', ' , ', '(', ')', ' IN (')
  const statement = fc
    .array(
      fc.tuple(fc.oneof({ weight: 3, arbitrary: code }, { weight: 3, arbitrary: literal }, comment), gap),
      { maxLength: 30 },
    )
    .map((parts) => parts.flat().join(''))

  const trouble = fc.constantFrom(
    ...`' " $ $$ $a$ \\ - + / * -- /* */ . , ; ( ) ? 1 12 1e 0x E U& B true IN in FROM SELECT WITH AS COPY STDIN ESCAPE a é = : [ ] UNION`.split(
      ' ',
    ),
    ' ',
    '\n',
    '\r',
    '\u2028',
  )
  const garbage = fc.oneof(
    fc.array(trouble, { maxLength: 40 }).map((parts) => parts.join('')),
    fc.string({ unit: 'binary' }),
    statement,
  )

  it('no literal and no comment shows', () => {
    fc.assert(
      fc.property(statement, (query) => {
        const { text, summary } = describeSql(query)
        expect(text).not.toMatch(/zqz|98765|--|\/\*/)
        expect(summary).not.toMatch(/zqz|98765|--|\/\*/)
      }),
      { numRuns: 3000 },
    )
  })

  it('none shows either where the text breaks off', () => {
    fc.assert(
      fc.property(statement, fc.nat(), (query, cut) => {
        const { text, summary } = describeSql(query.slice(0, cut % (query.length + 1)))
        expect(text + summary).not.toMatch(/zqz|98765/)
      }),
      { numRuns: 3000 },
    )
  })

  it('hiding twice is hiding once', () => {
    fc.assert(
      fc.property(garbage, (query) => {
        const once = describeSql(query)
        expect(describeSql(once.text).text).toBe(once.text)
        expect(once.text.length).toBeLessThanOrEqual(query.length)
      }),
      { numRuns: 5000 },
    )
  })

  it('no quote is left outside a name, and the summary is one short line', () => {
    fc.assert(
      fc.property(garbage, (query) => {
        const { text, summary } = describeSql(query)
        expect(text.replace(/"[^"]*"/g, '')).not.toMatch(/['"]/)
        expect(summary).not.toMatch(/[\p{Cc}\u2028\u2029]/u)
        expect(summary.length).toBeLessThanOrEqual(255)
        expect(describeSql(query).summary).toBe(summary)
      }),
      { numRuns: 5000 },
    )
  })
})

describe('whether a comment can stand behind it', () => {
  const plain = [
    'SELECT 1',
    'SELECT 1;',
    `SELECT '-- a', "/* b */", $$ /* c $$, E'\\'--'`,
    'SELECT a - -1, b / *, c',
    'COPY t FROM STDIN;',
  ]
  const others = {
    'it has one': ['SELECT 1 -- a', '/* a */ SELECT 1', 'SELECT 1 /* a', 'SELECT/**/1'],
    'it is not sure to end': ["SELECT 'a", 'SELECT "a', 'SELECT $a$', "SELECT 'it\\'s'"],
    'rows follow': ['COPY t FROM STDIN;\n1\n\\.'],
    'it asks nothing': ['', ' ', ';'],
    'it is too long to be read': [`SELECT ${'a, '.repeat(100_000)} b FROM t`],
  }
  it.each(plain)('can behind %s', (query) => expect(describeSql(query).isPlain).toBe(true))
  for (const [why, queries] of Object.entries(others)) {
    it(`cannot where ${why}`, () => {
      for (const query of queries) expect(describeSql(query).isPlain).toBe(false)
    })
  }
})

describe('the time it takes', () => {
  // The large text is as long as one that is read to its end.
  const SMALL = 2 ** 13
  const GROWTH = 2 ** 4

  const shapes: Record<string, readonly [string, string]> = {
    'single quotes': ['', "'"],
    strings: ['', "'a',"],
    'backslashes before a quote': ["'", '\\'],
    'doubled backslashes before quotes': ["'", "\\\\''"],
    'double quotes': ['', '"'],
    'comments that nest': ['', '/*'],
    'comments that nest and close': ['', '/* */'],
    dollars: ['a', ' $'],
    'dollar tags that never close': ['', '$a'],
    'dollar tags that differ': ['$aaaaaaaaaaaaaaaaaaaaaaaa$', '$aaaaaaaaaaaaaaaaaaaaaaa'],
    parentheses: ['SELECT ', '('],
    'lists behind IN': ['SELECT a IN (1', ',1'],
    'lists opened behind IN': ['', 'IN (1,'],
    'names with dots': ['SELECT * FROM a', '.a'],
    tables: ['SELECT * FROM a', ', a'],
    statements: ['', 'SELECT 1 FROM t;'],
    digits: ['', '1'],
    exponents: ['', '1e+'],
    signs: ['', '- +'],
    words: ['', 'a '],
    'one word': ['', 'a'],
    blanks: ['', ' '],
  }
  for (const [what, [head, unit]] of Object.entries(shapes)) {
    it(`grows with the length of the text, not faster, for ${what}`, () => {
      const small = head + unit.repeat(SMALL / unit.length)
      const large = head + unit.repeat((SMALL * GROWTH) / unit.length)
      // Quadratic growth would be GROWTH times GROWTH; the floor keeps a busy machine from counting as growth.
      expect(time(large)).toBeLessThan(Math.max(time(small), 1) * GROWTH * 8)
    })
  }

  it.each(["'", '"', "''", '$a$', '/*', "E'\\'", '(', '-- \n'])(
    'is that of its beginning for megabytes of %j',
    (unit) => {
      const read = 2 ** 17
      const megabytes = unit.repeat((read * 2 ** 6) / unit.length)
      expect(time(megabytes)).toBeLessThan(Math.max(time(megabytes.slice(0, read)), 1) * 8)
      expect(describeSql(megabytes).text.length).toBeLessThanOrEqual(read + 1)
    },
  )

  it('is spent once for a statement that comes again', () => {
    const query = 'SELECT 1 FROM cached'
    expect(describeSql(query)).toBe(describeSql(['SELECT 1', 'FROM cached'].join(' ')))
  })

  it('costs no memory without end: old statements and long ones are forgotten', () => {
    const first = describeSql('SELECT 1 FROM first')
    for (let i = 0; i < 1000; i++) describeSql(`SELECT a FROM other_${i}`)
    expect(describeSql('SELECT 1 FROM first')).not.toBe(first)

    const long = `SELECT ${'a, '.repeat(2000)} b FROM t`
    expect(describeSql(long)).not.toBe(describeSql(long))
  })

  it('costs no more than the statements, whatever longer text the app has cut them out of', () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    collect()
    const before = process.memoryUsage().heapUsed
    for (let script = 0; script < 50; script++) {
      const statement = `DELETE FROM old_entries_${script} WHERE id = 1 AND kind = kind`
      const [first = ''] = Buffer.from(`${statement};${' '.repeat(1_000_000)}`)
        .toString()
        .split(';')
      describeSql(first)
    }
    collect()
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(10_000_000)
  })
})
