import { readConfig, type StartOptions } from '../../packages/core/src/config.ts'

export type Environment = Record<string, string>

/** The configuration by these variables and these options, whatever the variables of the process are. */
export const read = (environment: Environment = {}, options: StartOptions = {}) =>
  readConfig(options, environment)

export const EVERY_VARIABLE = [
  'OTEL_SDK_DISABLED',
  'OTEL_SERVICE_NAME',
  'OTEL_RESOURCE_ATTRIBUTES',
  'OTEL_PROPAGATORS',
  'OTEL_TRACES_SAMPLER',
  'OTEL_TRACES_SAMPLER_ARG',
  'OTEL_TRACES_EXPORTER',
  'OTEL_CONFIG_FILE',
  'OTEL_LOG_LEVEL',
  'OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN',
  ...['SCHEDULE_DELAY', 'EXPORT_TIMEOUT', 'MAX_QUEUE_SIZE', 'MAX_EXPORT_BATCH_SIZE'].map(
    (name) => `OTEL_BSP_${name}`,
  ),
  ...['', 'SPAN_'].flatMap((prefix) => [
    `OTEL_${prefix}ATTRIBUTE_COUNT_LIMIT`,
    `OTEL_${prefix}ATTRIBUTE_VALUE_LENGTH_LIMIT`,
  ]),
  'OTEL_SPAN_EVENT_COUNT_LIMIT',
  'OTEL_SPAN_LINK_COUNT_LIMIT',
  'OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT',
  'OTEL_LINK_ATTRIBUTE_COUNT_LIMIT',
  ...['', 'TRACES_'].flatMap((prefix) =>
    [
      'ENDPOINT',
      'HEADERS',
      'TIMEOUT',
      'COMPRESSION',
      'PROTOCOL',
      'CERTIFICATE',
      'CLIENT_KEY',
      'CLIENT_CERTIFICATE',
      'INSECURE',
    ].map((name) => `OTEL_EXPORTER_OTLP_${prefix}${name}`),
  ),
]
