import { context, override } from '@throughline/core'
import { abandon, type Command } from './command.ts'
import type { Client } from './connection.ts'

/** What ioredis sends by itself to set up a connection, and what it sends as soon as one is ready. */
const HANDSHAKE = new Set(['auth', 'client', 'hello', 'himport', 'monitor', 'readonly', 'select'])
const RESUMPTION = new Set(['client', 'psubscribe', 'readonly', 'select', 'ssubscribe', 'subscribe'])

/** What a Cluster sends before a command that the node is to answer though it does not own the slot. */
const REDIRECTION = 'asking'
/** The connection name of the client by which a Cluster asks for its slots. */
const REFRESHER = 'ioredis-cluster(refresher)'

/** Whether a duplicate was made by ioredis for itself, or is monitoring and so can issue no commands. */
export function isOfLibrary({ options: { monitor, connectionName } }: Client): boolean {
  return monitor === true || connectionName?.startsWith(REFRESHER) === true
}

/** The states that a connection may already have reached while ioredis 5 is still setting it up. */
const LOST = new Set(['close', 'reconnecting', 'end'])

/** A test of whether a command issued now comes from ioredis itself, and not from the app. */
export function ownCommands(client: Client): (command: Command) => boolean {
  let isResuming = false
  let isChecking = false
  // The context in which ioredis sets up its connection: that of whoever made it connect. A client that is already connecting
  // when it is traced was most likely made just now, in this one.
  let setUpScope = context.active()

  // When a connection is ready, ioredis restores the last one's state at once, before anybody can be told.
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

  // Each new connection has a new queue. What the old one holds, and is not kept to be sent again, ioredis drops in silence.
  if (client.resetCommandQueue !== undefined)
    override(client as Required<Client>, 'resetCommandQueue', (original) => {
      return function resetCommandQueue(this: unknown, ...args) {
        const { commandQueue, prevCommandQueue } = client
        if (commandQueue !== prevCommandQueue) abandonAll(commandQueue)
        return Reflect.apply(original, this, args)
      }
    })

  // Both send their own readiness check, a Redis even when it has lost the connection meanwhile.
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
  // Everything else goes through clients that it makes itself.
  if (client.isCluster) return () => isChecking

  // The app's own commands come from another context.
  const isOfSetUp = (): boolean => context.active() === setUpScope
  const isOwn = (command: Command): boolean => {
    const { name } = command
    const { status } = client
    if (isChecking || name === REDIRECTION) return true
    if (status === 'connect') return HANDSHAKE.has(name) && isOfSetUp()
    if (isResuming) return RESUMPTION.has(name)
    return isClientInfo(command) && LOST.has(status) && isOfSetUp()
  }
  const { himportFieldsets = [] } = client.options
  if (himportFieldsets.length === 0) return isOwn
  const fieldsets = new Set(himportFieldsets.map(({ name }) => name))
  return (command) => isPreparation(command, fieldsets) || isOwn(command)
}

/** What ioredis 6 prepares for HIMPORT, also later, in whatever context, where the server has forgotten it. */
function isPreparation({ name, args }: Command, fieldsets: ReadonlySet<unknown>): boolean {
  return name === 'himport' && args[0] === 'PREPARE' && fieldsets.has(args[1])
}

/** What ioredis 5 tells of itself, which it reads from a file first. */
function isClientInfo({ name, args }: Command): boolean {
  return name === 'client' && args[0] === 'SETINFO'
}

/** Commands of an earlier connection that ioredis neither sends again nor rejects at once never end by themselves. */
function abandonUnanswered({ prevCommandQueue }: Client): void {
  const dropped = prevCommandQueue?.toArray?.() ?? []
  if (dropped.length === 0) return
  queueMicrotask(() => {
    for (const { command } of dropped) abandon(command)
  })
}

function abandonAll(queue: Client['commandQueue']): void {
  for (const { command } of queue?.toArray?.() ?? []) abandon(command)
}
