/**
 * The names of the OpenTelemetry semantic conventions 1.45 that Throughline uses (stable ones unless said otherwise). A test holds
 * them against @opentelemetry/semantic-conventions.
 */
export const HTTP_REQUEST_METHOD = 'http.request.method'
export const HTTP_REQUEST_METHOD_ORIGINAL = 'http.request.method_original'
export const HTTP_RESPONSE_STATUS_CODE = 'http.response.status_code'
export const HTTP_REQUEST_RESEND_COUNT = 'http.request.resend_count'
export const HTTP_ROUTE = 'http.route'
export const HTTP_REQUEST_HEADER = 'http.request.header.'
export const HTTP_RESPONSE_HEADER = 'http.response.header.'

export const URL_FULL = 'url.full'
export const URL_PATH = 'url.path'
export const URL_QUERY = 'url.query'
export const URL_SCHEME = 'url.scheme'

/** In development. */
export const URL_TEMPLATE = 'url.template'

export const SERVER_ADDRESS = 'server.address'
export const SERVER_PORT = 'server.port'
export const CLIENT_ADDRESS = 'client.address'
export const NETWORK_PEER_ADDRESS = 'network.peer.address'
export const NETWORK_PEER_PORT = 'network.peer.port'
export const NETWORK_PROTOCOL_VERSION = 'network.protocol.version'
export const USER_AGENT_ORIGINAL = 'user_agent.original'

export const DB_SYSTEM_NAME = 'db.system.name'
export const DB_NAMESPACE = 'db.namespace'
export const DB_COLLECTION_NAME = 'db.collection.name'
export const DB_OPERATION_NAME = 'db.operation.name'
export const DB_OPERATION_BATCH_SIZE = 'db.operation.batch.size'
export const DB_QUERY_TEXT = 'db.query.text'
export const DB_QUERY_SUMMARY = 'db.query.summary'
/** In development. */
export const DB_QUERY_PARAMETER = 'db.query.parameter.'
export const DB_RESPONSE_STATUS_CODE = 'db.response.status_code'
export const DB_STORED_PROCEDURE_NAME = 'db.stored_procedure.name'

export const CODE_FUNCTION_NAME = 'code.function.name'

export const ERROR_TYPE = 'error.type'
export const EXCEPTION_EVENT = 'exception'
export const EXCEPTION_TYPE = 'exception.type'
export const EXCEPTION_MESSAGE = 'exception.message'
export const EXCEPTION_STACKTRACE = 'exception.stacktrace'

export const SERVICE_NAME = 'service.name'
/** In development. */
export const SERVICE_INSTANCE_ID = 'service.instance.id'
export const TELEMETRY_SDK_LANGUAGE = 'telemetry.sdk.language'
export const TELEMETRY_SDK_NAME = 'telemetry.sdk.name'
export const TELEMETRY_SDK_VERSION = 'telemetry.sdk.version'
/** In development. */
export const PROCESS_PID = 'process.pid'
/** In development. */
export const PROCESS_RUNTIME_NAME = 'process.runtime.name'
/** In development. */
export const PROCESS_RUNTIME_VERSION = 'process.runtime.version'
/** In development. */
export const HOST_NAME = 'host.name'

export const HTTP_SERVER_REQUEST_DURATION = 'http.server.request.duration'
export const HTTP_CLIENT_REQUEST_DURATION = 'http.client.request.duration'
export const DB_CLIENT_OPERATION_DURATION = 'db.client.operation.duration'
/** In development. */
export const DB_CLIENT_CONNECTION_COUNT = 'db.client.connection.count'
/** In development. */
export const DB_CLIENT_CONNECTION_MAX = 'db.client.connection.max'
/** In development. */
export const DB_CLIENT_CONNECTION_PENDING_REQUESTS = 'db.client.connection.pending_requests'
/** In development. */
export const DB_CLIENT_CONNECTION_POOL_NAME = 'db.client.connection.pool.name'
/** In development. */
export const DB_CLIENT_CONNECTION_STATE = 'db.client.connection.state'
/** In development. */
export const HTTP_SERVER_ACTIVE_REQUESTS = 'http.server.active_requests'

// What HTTP's names were before 1.23, for those who ask for both.
export const OLD_HTTP_METHOD = 'http.method'
export const OLD_HTTP_STATUS_CODE = 'http.status_code'
export const OLD_HTTP_URL = 'http.url'
export const OLD_HTTP_TARGET = 'http.target'
export const OLD_HTTP_SCHEME = 'http.scheme'
export const OLD_HTTP_FLAVOR = 'http.flavor'
export const OLD_HTTP_USER_AGENT = 'http.user_agent'
export const OLD_HTTP_CLIENT_IP = 'http.client_ip'
export const OLD_HTTP_HOST = 'http.host'
export const OLD_NET_HOST_NAME = 'net.host.name'
export const OLD_NET_HOST_PORT = 'net.host.port'
export const OLD_NET_PEER_NAME = 'net.peer.name'
export const OLD_NET_PEER_PORT = 'net.peer.port'
export const OLD_NET_SOCK_PEER_ADDR = 'net.sock.peer.addr'
export const OLD_NET_SOCK_PEER_PORT = 'net.sock.peer.port'
export const OLD_NET_PROTOCOL_VERSION = 'net.protocol.version'
export const OLD_HTTP_SERVER_DURATION = 'http.server.duration'
export const OLD_HTTP_CLIENT_DURATION = 'http.client.duration'

// The same of databases, before 1.26.
export const OLD_DB_SYSTEM = 'db.system'
export const OLD_DB_NAME = 'db.name'
export const OLD_DB_REDIS_DATABASE_INDEX = 'db.redis.database_index'
export const OLD_DB_STATEMENT = 'db.statement'
export const OLD_DB_OPERATION = 'db.operation'
export const OLD_DB_SQL_TABLE = 'db.sql.table'

/** A method, or a type of an error, that has no name. */
export const OTHER = '_OTHER'

/** Our own: the span was not ended by what it stands for, but by the close of a socket or of the process. */
export const INCOMPLETE = 'throughline.incomplete'
/** Our own, in seconds: how long a call waited for a connection of its pool. */
export const POOL_WAIT = 'throughline.db.pool.wait'
