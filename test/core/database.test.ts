import { withOldDatabaseNames } from '@throughline/core/database'
import { expect, test } from 'vitest'

test('what had another name of a call of PostgreSQL has that one too', () => {
  const attributes = {
    'db.system.name': 'postgresql',
    'db.namespace': 'shop',
    'db.query.text': 'SELECT ?',
    'db.query.summary': 'SELECT',
    'db.collection.name': 'orders',
    'server.address': 'db.example',
    'server.port': 5433,
    'network.peer.address': '10.0.0.1',
    'network.peer.port': 5433,
    'app.own': 1,
  }
  expect(withOldDatabaseNames(attributes, 'postgresql')).toEqual({
    ...attributes,
    'db.system': 'postgresql',
    'db.name': 'shop',
    'db.statement': 'SELECT ?',
    'db.sql.table': 'orders',
    'net.peer.name': 'db.example',
    'net.peer.port': 5433,
    'net.sock.peer.addr': '10.0.0.1',
    'net.sock.peer.port': 5433,
  })
})

test('of Redis the database was a number, with a name of its own', () => {
  const attributes = { 'db.system.name': 'redis', 'db.namespace': '3', 'db.operation.name': 'GET' }
  expect(withOldDatabaseNames(attributes, 'redis')).toEqual({
    ...attributes,
    'db.system': 'redis',
    'db.redis.database_index': 3,
    'db.operation': 'GET',
  })
})

test('what is added later has its old name, and what is given stays as it was', () => {
  const later = Object.freeze({ 'db.namespace': '7' })
  expect(withOldDatabaseNames(later, 'redis')).toEqual({ 'db.namespace': '7', 'db.redis.database_index': 7 })
  expect(withOldDatabaseNames(later, 'postgresql')).toEqual({ 'db.namespace': '7', 'db.name': '7' })
})
