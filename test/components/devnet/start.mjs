// The account side of the network in the end-to-end tests: the reference PDS and a did:plc directory that
// keeps its operations in memory; or, with other packages, the PDS of the previous generation. It speaks one
// line of JSON in each direction:
//
//   standard input   {"pdsPort", "plcPort" or "plcUrl", "data", "lexicons"?, "accounts": [{"handle", "password"}]}
//   standard output  {"url", "plcUrl", "did", "accounts": [{"handle", "did", "password", "appPassword"}]}
//
// The answer comes when everything is ready. The process ends when its standard input is closed, so that it
// never outlives the test that started it, however that test ends.
import { mkdir } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

// Both servers listen on all addresses, and the passwords of their accounts are known.
const { listen } = net.Server.prototype
net.Server.prototype.listen = function (port, ...rest) {
  return typeof port === 'number' ? listen.call(this, { port, host: '127.0.0.1' }, ...rest) : listen.call(this, port, ...rest)
}
// A variable left in the shell would change what the tests see. The logger reads its own when the packages
// load, so that they are imported only after this.
for (const name of Object.keys(process.env)) if (/^(PDS|LOG)_/.test(name)) delete process.env[name]
process.env.LOG_ENABLED = 'false'

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const { pdsPort, plcPort, plcUrl: joined, lexicons, data, accounts } = JSON.parse((await lines.next()).value)
lines.next().then(() => process.exit(0))

const plcUrl = joined ?? `http://localhost:${plcPort}`
if (!joined) {
  const { default: plc } = await import('@did-plc/server')
  await plc.PlcServer.create({ db: plc.Database.mock(), port: plcPort }).start()
}

const { PDS, readEnv, envToCfg, envToSecrets } = await import('@atproto/pds')
await mkdir(join(data, 'blobs'), { recursive: true })
const did = `did:web:localhost%3A${pdsPort}`
const env = {
  ...readEnv(),
  devMode: true, // lets it reach addresses on this machine
  hostname: 'localhost', // its public URL becomes http://localhost:PORT
  port: pdsPort,
  serviceDid: did,
  serviceHandleDomains: ['.test'],
  didPlcUrl: plcUrl,
  lexiconDidAuthority: lexicons, // whose repo has all Lexicons, in place of DNS
  dataDirectory: data,
  blobstoreDiskLocation: join(data, 'blobs'),
  blobUploadLimit: 100 << 20,
  inviteRequired: false,
  adminPassword: 'administrator',
  jwtSecret: 'a secret of the tests',
  plcRotationKeyK256PrivateKeyHex: '2a'.repeat(32),
}
// The previous generation takes its settings in two pieces.
const pds = PDS.fromEnv ? await PDS.fromEnv(env) : await PDS.create(envToCfg(env), envToSecrets(env))
await pds.start()
const url = `http://localhost:${pdsPort}`

async function call(method, body, token) {
  const res = await fetch(`${url}/xrpc/com.atproto.server.${method}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify(body),
  })
  if (!res.ok) throw new Error(`${method}: ${res.status} ${await res.text()}`)
  return res.json()
}

const made = []
for (const { handle, password } of accounts) {
  const email = `${handle.replaceAll('.', '_')}@mail.test`
  const account = await call('createAccount', { handle, password, email })
  const app = await call('createAppPassword', { name: 'atcr' }, account.accessJwt)
  made.push({ handle, did: account.did, password, appPassword: app.password })
}
console.log(JSON.stringify({ url, plcUrl, did, accounts: made }))
