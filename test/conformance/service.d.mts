export function serve(
  framework: 'express' | 'koa' | 'fastify',
  port?: number,
): Promise<{ port: number; close(): Promise<void> }>
