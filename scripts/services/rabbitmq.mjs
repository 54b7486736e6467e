import { existsSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { freePort, inDirectory, launch, unprivileged, which } from './child.mjs'

export const title = 'RabbitMQ'
export const variable = 'AMQP_URL'
export const standardPort = 5672
export const packages = { 'apt-get': 'rabbitmq-server', dnf: 'rabbitmq-server', brew: 'rabbitmq' }

/** A server that is there answers within this many ms. */
const patience = 5000

/** @param {number} port */
export function privateUrl(port) {
  return `amqp://guest:guest@127.0.0.1:${port}`
}

/** @param {number} port */
export function candidates(port) {
  return [privateUrl(port)]
}

/**
 * AMQP can make no virtual host, so that the one in the URL is used as it is.
 *
 * @param {string} url
 */
export async function take(url) {
  await handshake(new URL(url))
  return { url, stop: async () => {} }
}

/** The class of the methods that set a connection up, and those methods: AMQP 0-9-1, section 1.4. */
const connection = 10
const method = { start: 10, startOk: 11, tune: 30, tuneOk: 31, open: 40, openOk: 41, close: 50 }

/**
 * Logs in as a client would, up to where channels could be opened.
 *
 * @param {URL} url
 */
async function handshake({ protocol, hostname, port, username, password, pathname }) {
  const secure = protocol === 'amqps:'
  const host = hostname.replace(/^\[|\]$/g, '')
  const socket = secure
    ? connectTls({ host, port: Number(port || 5671), servername: host })
    : connect({ host, port: Number(port || 5672) })
  const user = decodeURIComponent(username) || 'guest'
  const secret = decodeURIComponent(password) || 'guest'
  const virtualHost = decodeURIComponent(pathname.slice(1)) || '/'
  try {
    await new Promise((resolve, reject) => {
      let received = Buffer.alloc(0)
      socket.setTimeout(patience, () => reject(new Error('no answer in time')))
      socket.on('error', reject)
      socket.on('close', () => reject(new Error(`it closed the connection on the login ${user}`)))
      socket.on(secure ? 'secureConnect' : 'connect', () => socket.write('AMQP\0\0\u0009\u0001'))
      socket.on('data', (data) => {
        received = Buffer.concat([received, data])
        // A frame is type, channel and size (7 bytes), then a payload of that size, then a mark.
        while (received.length >= 7 && received.length >= received.readUInt32BE(3) + 8) {
          const size = received.readUInt32BE(3)
          const payload = received.subarray(7, 7 + size)
          received = received.subarray(8 + size)
          const id = payload.readUInt16BE(2)
          if (id === method.start) {
            const login = longString(`\0${user}\0${secret}`)
            socket.write(
              frame(method.startOk, clientProperties, shortString('PLAIN'), login, shortString('en_US')),
            )
          } else if (id === method.tune) {
            socket.write(frame(method.tuneOk, payload.subarray(4)))
            socket.write(frame(method.open, shortString(virtualHost), Buffer.alloc(2)))
          } else if (id === method.openOk) {
            socket.end(frame(method.close, Buffer.from([0, 200]), shortString('bye'), Buffer.alloc(4)))
            resolve(undefined)
          } else {
            // Connection.Close: a code of two bytes, then why.
            reject(
              new Error(
                id === method.close
                  ? payload.toString('utf8', 7, 7 + (payload[6] ?? 0))
                  : 'it is no RabbitMQ',
              ),
            )
          }
        }
      })
    })
  } finally {
    socket.destroySoon()
  }
}

/**
 * @param {number} id
 * @param {Buffer[]} fields
 */
function frame(id, ...fields) {
  const payload = Buffer.concat([Buffer.from([0, connection, 0, id]), ...fields])
  const header = Buffer.from([1, 0, 0, 0, 0, 0, 0])
  header.writeUInt32BE(payload.length, 3)
  return Buffer.concat([header, payload, Buffer.from([0xce])])
}

/** @param {string} text */
function shortString(text) {
  return Buffer.concat([Buffer.from([Buffer.byteLength(text)]), Buffer.from(text)])
}

/** @param {string} text */
function longString(text) {
  const size = Buffer.alloc(4)
  size.writeUInt32BE(Buffer.byteLength(text))
  return Buffer.concat([size, Buffer.from(text)])
}

/** With this capability a refused login is told; without, the server only hangs up. */
const clientProperties = longString(
  `${shortString('capabilities')}F${longString(`${shortString('authentication_failure_close')}t\u0001`)}`,
)

/** The distributions' rabbitmq-server on PATH switches users and directories; this is the one behind it. */
const behindTheWrapper = '/usr/lib/rabbitmq/bin/rabbitmq-server'

export async function startInstalled() {
  const [onPath, epmd] = await Promise.all([which('rabbitmq-server'), which('epmd')])
  if (!onPath || !epmd) return undefined
  const server = existsSync(behindTheWrapper) ? behindTheWrapper : onPath
  const user = unprivileged('rabbitmq', 'nobody')
  return inDirectory('rabbitmq', user, async (port, directory) => {
    const [epmdPort, distributionPort] = await Promise.all([freePort(), freePort()])
    const env = {
      ...process.env,
      // Erlang's name server is one of our own too, as the usual one would stay behind.
      ERL_EPMD_PORT: `${epmdPort}`,
      ERL_EPMD_ADDRESS: '127.0.0.1',
      RABBITMQ_NODENAME: 'throughline@localhost',
      RABBITMQ_NODE_IP_ADDRESS: '127.0.0.1',
      RABBITMQ_NODE_PORT: `${port}`,
      RABBITMQ_DIST_PORT: `${distributionPort}`,
      RABBITMQ_MNESIA_BASE: join(directory, 'data'),
      RABBITMQ_LOG_BASE: join(directory, 'log'),
      RABBITMQ_CONF_ENV_FILE: join(directory, 'none.conf'),
      RABBITMQ_CONFIG_FILE: join(directory, 'none'),
      RABBITMQ_ENABLED_PLUGINS_FILE: join(directory, 'enabled_plugins'),
      RABBITMQ_PID_FILE: join(directory, 'pid'),
      // Makes its script give way to the server, so that the process we know is the one to stop.
      RUNNING_UNDER_SYSTEMD: 'true',
    }
    const stopEpmd = await launch(epmd, ['-debug'], { ready: /epmd running/, cwd: directory, env, user })
    try {
      const stopServer = await launch(server, [], {
        ready: /completed with \d+ plugins/,
        cwd: directory,
        env,
        user,
      })
      return { url: privateUrl(port), stop: () => stopServer().finally(stopEpmd) }
    } catch (error) {
      await stopEpmd()
      throw error
    }
  })
}
