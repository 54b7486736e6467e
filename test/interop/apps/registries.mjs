// Files of tests in one process, as jest runs them: each has a registry of modules and a global object of its own, in a
// vm context, but Node's modules are the process's. None ends its tracing.
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { builtinModules, createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import vm from 'node:vm'

const require = createRequire(import.meta.url)
const { asked, headers, plain, tell, wire } = require('./app.cjs')

/** What imports a module into a global object of its own. */
function registry() {
  const { AbortController, Buffer, clearTimeout, console, performance, setTimeout, TextEncoder, URL } =
    globalThis
  const globals = {
    AbortController,
    Buffer,
    clearTimeout,
    console,
    performance,
    process,
    setTimeout,
    TextEncoder,
    URL,
  }
  const context = vm.createContext(globals)
  const modules = new Map()
  const required = new Map()

  function requireHere(file) {
    if (builtinModules.includes(file)) return require(file)
    let module = required.get(file)
    if (module === undefined) {
      required.set(file, (module = { exports: {} }))
      const wrapped = `(function (module, exports, require) {${readFileSync(file, 'utf8')}\n})`
      const { resolve } = createRequire(file)
      vm.runInContext(wrapped, context)(module, module.exports, (name) => requireHere(resolve(name)))
    }
    return module.exports
  }

  function synthetic(identifier, exports) {
    function fill() {
      for (const [name, value] of Object.entries(exports)) this.setExport(name, value)
    }
    return new vm.SyntheticModule(Object.keys(exports), fill, { context, identifier })
  }

  async function load(identifier) {
    if (identifier.startsWith('node:')) return synthetic(identifier, await import(identifier))
    const file = fileURLToPath(identifier)
    if (file.includes('@opentelemetry'))
      return synthetic(identifier, requireHere(require.resolve('@opentelemetry/api')))
    return new vm.SourceTextModule(readFileSync(file, 'utf8'), {
      context,
      identifier,
      initializeImportMeta: (meta) => (meta.url = identifier),
    })
  }

  function link(name, from) {
    const url = name.startsWith('.') ? new URL(name, from?.identifier).href : import.meta.resolve(name)
    if (!modules.has(url)) modules.set(url, load(url))
    return modules.get(url)
  }

  return async (name) => {
    const module = await link(name)
    if (module.status === 'unlinked') await module.link(link)
    await module.evaluate()
    return module.namespace
  }
}

const clients = {
  undici: [async (url) => (await fetch(url)).text()],
  // Headers in an array are text as soon as the request is made.
  http: [undefined, ['x-app', 'shop']].map(
    (headers) => (url) =>
      new Promise((resolve, reject) => {
        const request = http.request(url, { headers }, (response) => response.resume().on('end', resolve))
        request.on('error', reject).end()
      }),
  ),
}

const server = await wire()
const made = []
for (const file of ['first', 'second']) {
  const importHere = registry()
  const { span, start } = await importHere('@throughline/core')
  const { traceHttp, traceUndici } = await importHere(`@throughline/${asked.client}`)
  const onEnd = (each) => made.push({ ...plain(each), file })
  const processor = { onStart() {}, onEnd, forceFlush: async () => {}, shutdown: async () => {} }
  start({ signals: false, spanProcessors: [processor] })
  ;(traceHttp ?? traceUndici)()
  for (const ask of clients[asked.client]) await span(file, () => ask(`${server.url}/${file}`))
}
server.close()
tell({ made, traceparents: server.heads.map((head) => headers(head, 'traceparent')) })
