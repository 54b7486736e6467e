import { context, override } from '@throughline/core'
import { abandon, type Command } from './command.ts'
import type { Client } from './connection.ts'

/** What ioredis sends by itself to set up a connection, and what it sends as soon as one is ready. */
const HANDSHAKE = new Set(['auth', 'client', 'hello', 'himport', 'monitor', 'readonly', 'select'])
const RESUMPTION = new Set(['client', 'psubscribe', 'readonly', 'select', 'ssubscribe', 'subscribe'])

/** What a Cluster sends to a node before a command that this is to answer by way of exception. */
const REDIRECTION = 'asking'
/** How the duplicate of a node's client is called by which a Cluster asks for its slots. */
const REFRESHER = 'ioredis-cluster(refresher)'

/** Whether a duplicate is one that ioredis made for itself, or one that monitors, which can issue no commands. */
export function isOfLibrary({ options: { monitor, connectionName } }: Client): boolean {
  return monitor === true || connectionName?.startsWith(REFRESHER) === true
}

/** Where a connection may have got to while ioredis 5 is setting it up still. */
const LOST = new Set(['close', 'reconnecting', 'end'])

/** Tells which commands are of ioredis itself: whether one that is issued now is, and not of the app. */
export function ownCommands(client: Client): (command: Command) => boolean {
  let isResuming = false
  let isChecking = false
  // The context in which it sets up its connection: that of whoever had it connect, which may be neither the app's nor an
  // earlier one's. A client that is at it when it is traced was most likely made just now.
  let setUpScope = context.active()

  // When a connection is ready ioredis restores what the last one had, at once, before anybody can be told.
  override(client, 'setStatus', (original) => {
    return function setStatus(this: unknown, ...args) {
      const [status] = args
      if (status === 'connect') setUpScope = context.active()
      if (status === 'ready') {
        isResuming = true
        queueMicrotask(() => {
          isResuming = false
        })
      }
      if (status === 'end' || (status === 'ready' && !client.options.autoResendUnfulfilledCommands))
        abandonUnanswered(client)
      return Reflect.apply(original, this, args)
    }
  })

  // Both ask through themselves whether the server is ready, a Redis also when it has lost that connection by then.
  override(client as Required<Client>, client.isCluster ? 'readyCheck' : '_readyCheck', (original) => {
    return function readyCheck(this: unknown, ...args) {
      isChecking = true
      try {
        return Reflect.apply(original, this, args)
      } finally {
        isChecking = false
      }
    }
  })
  // All else goes through clients of its own making.
  if (client.isCluster) return () => isChecking

  // What the app asks for meanwhile, it asks from elsewhere.
  const isOfSetUp = (): boolean => context.active() === setUpScope
  return (command) => {
    const { name } = command
    const { status } = client
    if (isChecking || name === REDIRECTION) return true
    if (status === 'connect') return HANDSHAKE.has(name) && isOfSetUp()
    if (isResuming) return RESUMPTION.has(name)
    return isClientInfo(command) && LOST.has(status) && isOfSetUp()
  }
}

/** What ioredis 5 tells of itself, which it reads from a file first. */
function isClientInfo({ name, args }: Command): boolean {
  return name === 'client' && args[0] === 'SETINFO'
}

/** Commands of a connection before that ioredis neither sends again nor refuses, at once, have no end of their own. */
function abandonUnanswered({ prevCommandQueue }: Client): void {
  const dropped = prevCommandQueue?.toArray?.() ?? []
  if (dropped.length === 0) return
  queueMicrotask(() => {
    for (const { command } of dropped) abandon(command)
  })
}
