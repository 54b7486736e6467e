// An official SDK that registers after Throughline has started; all of it CommonJS but ours.
const { NodeSDK } = require('@opentelemetry/sdk-node')
const { InMemorySpanExporter, SimpleSpanProcessor } = require('@opentelemetry/sdk-trace')
const { span, start } = require('@throughline/core')
const { run } = require('./too-late.cjs')

void run(NodeSDK, InMemorySpanExporter, SimpleSpanProcessor, span, start)
