import { statSync } from 'node:fs'
import { Session } from 'node:inspector'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { answer, settings } from './child.mjs'

const { folder, name } = settings()
const files = new Set()
const session = new Session()
session.connect()
session.on('Debugger.scriptParsed', ({ params: { url } }) => {
  if (url.startsWith('file:')) files.add(fileURLToPath(url))
})
session.post('Debugger.enable')
// What this script itself is made of is told first.
files.clear()
const { resolve } = createRequire(join(folder, 'package.json'))
await import(pathToFileURL(resolve(name)).href)
session.disconnect()

answer({
  /** How many files the import loads beside the API's, and the bytes of the largest. */
  loaded() {
    const own = [...files].filter((file) => !file.includes('@opentelemetry/api'))
    return { count: own.length, largest: Math.max(...own.map((file) => statSync(file).size)) }
  },
})
