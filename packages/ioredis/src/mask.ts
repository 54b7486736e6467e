import { guarded, rawMessageOf, reportOnce, showAs } from '@throughline/core'
import type { QueryText } from './command.ts'

/** Whether the argument at this index is a key, a field or a keyword of the command, and not a value. */
type Shown = (index: number, args: readonly unknown[]) => boolean

const first: Shown = (index) => index === 0
const firstTwo: Shown = (index) => index < 2
const all: Shown = () => true
const allButLast: Shown = (index, args) => index < args.length - 1
const evenOnes: Shown = (index) => index % 2 === 0
const keyAndFields: Shown = (index) => index === 0 || index % 2 === 1

/** The argument at `at`, which is a number of keys, and that many keys after it. */
function counted(at: number, before: Shown = () => false): Shown {
  return (index, args) => {
    const count = Number(args[at])
    const isCount = Number.isInteger(count) && count >= 0 && count < args.length - at
    return before(index, args) || (isCount && index >= at && index <= at + count)
  }
}

/** More arguments than can stand before STREAMS. Without this limit the time for one without that word grows with its square. */
const MOST_BEFORE_STREAMS = 16

/** The word STREAMS, and the keys: the first half of what follows it. */
const streams: Shown = (index, args) => {
  const start = args.slice(0, MOST_BEFORE_STREAMS).findIndex((arg) => worded(arg).toUpperCase() === 'STREAMS')
  return start !== -1 && index >= start && index <= start + (args.length - 1 - start) / 2
}

/** Which arguments of which commands are shown. All others are values, including all of an unknown command's. */
const SHOWN = new Map<string, Shown>()
show(
  first,
  `APPEND ARCOUNT ARDEL ARDELRANGE ARGET ARGETRANGE ARGREP ARINFO ARINSERT ARLASTITEMS ARLEN ARMGET ARMSET ARNEXT AROP
   ARRING ARSCAN ARSEEK ARSET BITCOUNT BITFIELD BITFIELD_RO BITPOS DECR DECRBY DELEX DIGEST DUMP EXPIRE EXPIREAT
   EXPIRETIME GEOADD GEODIST GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH
   GET GETBIT GETDEL GETEX GETRANGE GETSET HEXPIRE HEXPIREAT HEXPIRETIME HGETALL HGETDEL HGETEX HKEYS HLEN HPERSIST
   HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSETEX HTTL HVALS INCR INCRBY INCRBYFLOAT INCREX LINDEX
   LINSERT LLEN LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MOVE PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD PSETEX
   PTTL PUBLISH RESTORE RPOP RPUSH RPUSHX SADD SCARD SELECT SET SETBIT SETEX SETNX SETRANGE SISMEMBER SMEMBERS
   SMISMEMBER SORT SORT_RO SPOP SPUBLISH SRANDMEMBER SREM SSCAN STRLEN SUBSTR TTL TYPE VADD VCARD VDIM VEMB VGETATTR
   VINFO VISMEMBER VLINKS VRANDMEMBER VRANGE VREM VSETATTR VSIM XACK XACKDEL XADD XAUTOCLAIM XCLAIM XDEL XDELEX XLEN
   XPENDING XRANGE XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT ZINCRBY ZLEXCOUNT ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER
   ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE
   ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE`,
)
// A subcommand comes first: CONFIG SET ? ?
show(first, 'ACL CLIENT CLUSTER COMMAND CONFIG DEBUG FUNCTION INFO LATENCY MODULE PUBSUB SCRIPT SLOWLOG')
show(firstTwo, 'COPY GEOSEARCHSTORE HEXISTS HGET HINCRBY HINCRBYFLOAT HSETNX HSTRLEN SMOVE ZRANGESTORE')
show(firstTwo, 'BLMOVE BLMOVEM BRPOPLPUSH LCS LMOVE LMOVEM MEMORY OBJECT RPOPLPUSH XGROUP XINFO')
show(
  all,
  `BITOP DEL EXISTS HDEL HMGET MGET PFCOUNT PFMERGE PSUBSCRIBE PUNSUBSCRIBE RENAME RENAMENX SDIFF SDIFFSTORE SINTER
   SINTERSTORE SSUBSCRIBE SUBSCRIBE SUNION SUNIONSTORE SUNSUBSCRIBE TOUCH UNLINK UNSUBSCRIBE WATCH`,
)
show(allButLast, 'BLPOP BRPOP BZPOPMAX BZPOPMIN')
show(evenOnes, 'MSET MSETNX')
show(keyAndFields, 'HMSET HSET')
show(counted(0), 'LMPOP SDIFFCARD SINTERCARD SUNIONCARD ZDIFF ZINTER ZINTERCARD ZMPOP ZUNION')
show(counted(1), 'BLMPOP BZMPOP EVAL EVAL_RO')
show(counted(1, first), 'EVALSHA EVALSHA_RO FCALL FCALL_RO ZDIFFSTORE ZINTERSTORE ZUNIONSTORE')
show(streams, 'XREAD XREADGROUP')

function show(shown: Shown, names: string): void {
  for (const name of names.split(/\s+/)) SHOWN.set(name, shown)
}

/** All the keys of an MGET of thousands would explain nothing more. */
const MOST_ARGUMENTS = 64
/** In UTF-16 units, for a pipeline of thousands of commands likewise. */
const MOST_TEXT = 4096

interface Given {
  readonly name: string
  readonly args: readonly unknown[]
}

/** A command's text; undefined where it is to have none. */
export type TextOf = (name: string, args: readonly unknown[]) => string | undefined

/** Where a key, or a value that is shown, is cut: in UTF-16 units. */
const MOST_OF_A_VALUE = 256

/** Commands that carry passwords have them masked whatever is asked for. */
const SECRET = new Set(['ACL', 'AUTH', 'CONFIG', 'HELLO', 'MIGRATE', 'SENTINEL'])

/** The text of a command as the app wants it. If the app's function throws, only the text is missing. */
export function textOf(option: QueryText = 'masked'): TextOf {
  if (typeof option === 'function') return guarded('queryText', option) as TextOf
  if (option === 'none') return () => undefined
  return option === 'full' ? fullCommand : maskedCommand
}

/** A command in the syntax of the redis CLI, with `?` for every value: `HMSET user:7 name ? email ?`. */
function maskedCommand(name: string, args: readonly unknown[]): string {
  return written(name, args, SHOWN.get(name))
}

function fullCommand(name: string, args: readonly unknown[]): string {
  return SECRET.has(name) ? maskedCommand(name, args) : written(name, args, all)
}

function written(name: string, args: readonly unknown[], shown: Shown | undefined): string {
  let text = name
  for (let index = 0; index < args.length; index += 1) {
    if (index === MOST_ARGUMENTS || text.length > MOST_TEXT) return `${text} …`
    text += shown?.(index, args) === true ? ' ' + quoted(worded(args[index])) : ' ?'
  }
  return text
}

/** Commands that go together, in the syntax of the redis CLI, up to a length that a reader can take in. */
export function batchText(commands: readonly Given[], one: TextOf): string | undefined {
  let text: string | undefined
  for (const { name, args } of commands) {
    if (text !== undefined && text.length > MOST_TEXT) return `${text}; …`
    const next = one(name.toUpperCase(), args)
    if (next !== undefined) text = text === undefined ? next : `${text}; ${next}`
  }
  return text
}

/** Names of commands that the server knows are kept. The rest goes from its first quotation mark to the last. */
const QUOTED = /(\b(?:for|in|the) '[\w|.-]+' command)|(?<![\p{L}\p{N}])(['"`])[^]*\2/gu

/**
 * Coordinates as the server tells them, which is not as the app gave them: `190.500000` for `190.5`. By the words before them:
 * what a script says may have such a number within a value, which would not be found then.
 */
const COORDINATES = /(?<=\blongitude,latitude pair )-?\d+\.\d{6},-?\d+\.\d{6}/g

/**
 * An error's message without the values in it: what it quotes, since a value may hold quotation marks itself, and what
 * arguments of the command it repeats, as errors of scripts do. All spans that tell of this error will have it so, also
 * those of the requests and functions that it goes through.
 */
export function maskedMessage(error: unknown, command = commandOf(error)): string {
  return showAs(error, withoutValues(rawMessageOf(error), command))
}

/** Called while ioredis settles a command, which would else never settle: it must not throw. */
function withoutValues(message: string, command: Given | undefined): string {
  try {
    return withoutArguments(message.replace(COORDINATES, '?,?'), command).replace(
      QUOTED,
      (_, command: string | undefined, mark: string) => command ?? `${mark}?${mark}`,
    )
  } catch {
    // What went wrong may name a value.
    reportOnce('ioredis:message', 'error', 'the message of an error could not be masked, and is left out')
    return '?'
  }
}

/** The server's error as it may be shown, for a command that had no span. */
export function maskedReply(error: object): string | undefined {
  return (error as { name?: unknown }).name === 'ReplyError' ? maskedMessage(error) : undefined
}

/**
 * In UTF-16 units. What is longer is no message of the server, but what a script was given: it is masked whole, since to look for
 * each argument in it would take seconds.
 */
const MOST_OF_A_MESSAGE = 1024

/** A character of a message may be several bytes of a Buffer. */
const MOST_BYTES = 4

/** ioredis names the command of an error, except for errors inside the reply to EXEC. */
function commandOf(error: unknown): Given | undefined {
  const { name, args } = (error as { command?: Partial<Given> } | null)?.command ?? {}
  return typeof name === 'string' && Array.isArray(args) ? { name, args } : undefined
}

/** The first word of an error's message, which is the server's own: ERR, WRONGTYPE. */
export const REPLY_CODE = /^[A-Z][A-Z0-9_]*(?=\s|$)/

function withoutArguments(message: string, command: Given | undefined): string {
  if (command === undefined) return message
  const { name, args } = command
  const shown = SHOWN.get(name.toUpperCase())
  const values: string[] = []
  for (const [index, arg] of args.entries()) {
    if (shown?.(index, args) !== true && lengthOf(arg) <= message.length * MOST_BYTES)
      values.push(worded(arg))
  }
  // A script may begin its message with a value in capitals, which is then no code of the server's.
  const isOwn = !values.some(
    (value) => value !== '' && message.startsWith(value) && !isOfWord(message, value.length),
  )
  const code = (isOwn && REPLY_CODE.exec(message)?.[0]) || ''
  let rest = message.slice(code.length)
  if (rest.length > MOST_OF_A_MESSAGE) return `${code} ?`.trimStart()
  // Long ones first: `1` within `Main Street 1` would leave the rest of it.
  values.sort((one, other) => other.length - one.length)
  for (const value of values) if (value !== '') rest = withoutWord(rest, value)
  return code + rest
}

/** The text with `?` for the value wherever it stands as a word. Not by a RegExp, which V8 would compile for each value. */
function withoutWord(text: string, value: string): string {
  let masked = ''
  let from = 0
  for (let at = text.indexOf(value); at !== -1;) {
    const end = at + value.length
    const isWord = !isOfWord(text, at - 1) && !isOfWord(text, end)
    if (isWord) {
      masked += `${text.slice(from, at)}?`
      from = end
    }
    at = text.indexOf(value, isWord ? end : at + 1)
  }
  return masked + text.slice(from)
}

function isOfWord(text: string, at: number): boolean {
  return /\w/.test(text.charAt(at))
}

/** An argument as text; `?` if it has none: ioredis will refuse it. */
export function worded(arg: unknown): string {
  if (typeof arg === 'string') return arg
  try {
    return String(arg)
  } catch {
    return '?'
  }
}

function lengthOf(arg: unknown): number {
  return typeof arg === 'string' || Buffer.isBuffer(arg) ? arg.length : Infinity
}

function quoted(given: string): string {
  const word = given.length > MOST_OF_A_VALUE ? `${given.slice(0, MOST_OF_A_VALUE)}…` : given
  return isBare(word) ? word : JSON.stringify(word)
}

const SPACE = 0x20
const QUOTATION_MARK = 0x22
const APOSTROPHE = 0x27
const QUESTION_MARK = 0x3f
const LAST_OF_ASCII = 0x7e

/** Whether a word needs no quotation marks. Not by the expression alone: that costs 0.4 µs a command. */
function isBare(word: string): boolean {
  for (let index = 0; index < word.length; index++) {
    const code = word.charCodeAt(index)
    if (code === QUOTATION_MARK || code === APOSTROPHE || code === QUESTION_MARK) return false
    // What counts as white space beyond that, the expression knows.
    if (code <= SPACE || code > LAST_OF_ASCII) return BARE.test(word)
  }
  return word !== ''
}

const BARE = /^[^\s"'?]+$/
