/** 1 %, decided where the trace begins, as the standard's variables say it. */
const ONE_PERCENT = { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0.01' }

/**
 * All who are measured end to end. At 100 % requests bring a sampled traceparent along; at 1 % none, so that the contender
 * decides itself, as the first service of a trace does; an unsampled request brings the decision of another along.
 *
 * @param {{ name: string, folder: string, version: string }[]} staged our packages
 * @returns {(import('./start-server.mjs').Contender & { isQuick: boolean, isFarOff?: boolean })[]} `isQuick`: of the quick run, too;
 *   `isFarOff`: so far from the targets that one process of it tells
 */
export function contenders(staged) {
  const ours = staged.flatMap(({ name, ...settings }) => [
    { name, contender: 'ours', settings, flags: '01', isQuick: true },
    { name: `${name}, unsampled`, contender: 'ours', settings, flags: '00', isQuick: true },
    { name: `${name}, 1 %`, contender: 'ours', settings, env: ONE_PERCENT, isQuick: false },
  ])
  return [
    { name: 'bare', contender: 'bare', isQuick: true },
    { name: 'floor', contender: 'floor', flags: '01', isQuick: true },
    ...ours,
    { name: 'OpenTelemetry', contender: 'opentelemetry', flags: '01', isQuick: true, isFarOff: true },
    { name: 'OpenTelemetry, 1 %', contender: 'opentelemetry', env: ONE_PERCENT, isQuick: false },
    { name: 'dd-trace', contender: 'dd-trace', flags: '01', isQuick: false },
    { name: 'Sentry', contender: 'sentry', flags: '01', isQuick: false },
    { name: 'Elastic', contender: 'elastic', flags: '01', isQuick: false },
  ]
}

/** @param {{ name: string, folder: string, version: string }[]} staged @param {string} install */
export function microContenders(staged, install) {
  return [
    { name: 'floor', contender: 'floor', settings: {} },
    ...staged.map(({ name, ...settings }) => ({ name, contender: 'ours', settings })),
    { name: 'OpenTelemetry', contender: 'opentelemetry', settings: { install } },
  ]
}
