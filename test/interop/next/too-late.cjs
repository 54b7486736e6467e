// What both forms of the late app do.
const { tell } = require('../apps/app.cjs')

exports.run = async function run(NodeSDK, InMemorySpanExporter, SimpleSpanProcessor, span, start) {
  const [ours, theirs] = [new InMemorySpanExporter(), new InMemorySpanExporter()]
  const tracing = start({ spanProcessors: [new SimpleSpanProcessor({ exporter: ours })], signals: false })
  span('first', () => {})
  const spanProcessors = [new SimpleSpanProcessor({ exporter: theirs })]
  const sdk = new NodeSDK({ spanProcessors, autoDetectResources: false })
  sdk.start()
  span('second', () => {})
  await tracing.flush()
  const names = (exporter) => exporter.getFinishedSpans().map(({ name }) => name)
  const told = { spans: names(ours), theirs: names(theirs) }
  await sdk.shutdown()
  await tracing.shutdown()
  tell(told)
}
