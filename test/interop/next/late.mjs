// An official SDK that registers after Throughline has started; all of it modules.
import { createRequire } from 'node:module'
import { NodeSDK } from '@opentelemetry/sdk-node'
import { InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace'
import { span, start } from '@throughline/core'

const { run } = createRequire(import.meta.url)('./too-late.cjs')
await run(NodeSDK, InMemorySpanExporter, SimpleSpanProcessor, span, start)
