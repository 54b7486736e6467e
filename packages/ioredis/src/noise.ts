import { override } from '@throughline/core'
import type { Command } from './command.ts'
import type { Client } from './connection.ts'

/** What ioredis sends by itself to set up a connection, and what it sends as soon as one is ready. */
const HANDSHAKE = new Set(['auth', 'client', 'hello', 'himport', 'info', 'monitor', 'readonly', 'select'])
const RESUMPTION = new Set(['client', 'psubscribe', 'readonly', 'select', 'ssubscribe', 'subscribe'])

/** A function that tells whether a command that is issued now is of ioredis itself, and not of the app. */
export function ownCommands(client: Client): (command: Command) => boolean {
  let isResuming = false
  let isChecking = false

  // When a connection is ready ioredis restores what the last one had, at once, before anybody can be told.
  override(client, 'setStatus', (original) => {
    return function setStatus(this: unknown, ...args) {
      if (args[0] === 'ready') {
        isResuming = true
        queueMicrotask(() => {
          isResuming = false
        })
      }
      return Reflect.apply(original, this, args)
    }
  })

  if (!client.isCluster)
    return ({ name }) =>
      client.status === 'connect' ? HANDSHAKE.has(name) : isResuming && RESUMPTION.has(name)

  // A Cluster asks for its state through itself; all else goes through clients of its own making.
  override(client as Required<Client>, 'readyCheck', (original) => {
    return function readyCheck(this: unknown, ...args) {
      isChecking = true
      try {
        return Reflect.apply(original, this, args)
      } finally {
        isChecking = false
      }
    }
  })
  return () => isChecking
}

/** Commands that wait for work, and scripts, which take it; what asks for the server; and the end of it all. */
const OF_LOOPS = new Set(
  `BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN CLIENT EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO
   INFO QUIT`.split(/\s+/),
)
const READS_OF_STREAMS = new Set(['XREAD', 'XREADGROUP'])

/** Whether a worker's loop is made of such commands. */
export function isOfLoop(name: string, args: readonly unknown[]): boolean {
  if (OF_LOOPS.has(name)) return true
  return READS_OF_STREAMS.has(name) && args.some((arg) => String(arg).toUpperCase() === 'BLOCK')
}
