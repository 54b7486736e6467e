import pg from 'pg'
import { pgContract } from './contract.ts'

pgContract('pg', pg)
