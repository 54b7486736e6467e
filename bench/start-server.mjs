import { startChild } from './child.mjs'

/**
 * Who is measured end to end.
 *
 * @typedef {object} Contender
 * @property {string} name
 * @property {string} contender the file in contender/
 * @property {object} [settings] for it
 * @property {Record<string, string>} [env]
 * @property {'01' | '00'} [flags] of the traceparent that its requests bring along; without, they bring none
 */

/**
 * The app, traced by this contender, in a process of its own.
 *
 * @param {Contender} server
 * @param {object} options
 * @param {string} options.framework
 * @param {{ postgres: string, redis: string, http: string } | undefined} options.urls of what the app asks; none for an
 *   app that asks nobody
 * @param {string} options.install
 * @param {string} options.endpoint where it exports to
 * @param {string} options.node and how it is started: see `startChild`
 */
export function startServer(server, { framework, urls, install, endpoint, env, ...start }) {
  return startChild(new URL('server.mjs', import.meta.url), {
    name: server.name,
    settings: {
      ...server.settings,
      contender: server.contender,
      framework,
      install,
      endpoint,
      urls,
      patience: start.patience,
    },
    env: { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_SERVICE_NAME: 'bench', ...env, ...server.env },
    ...start,
  })
}
