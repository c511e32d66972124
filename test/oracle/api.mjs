// Every endpoint of a hold, called by the reference client, which holds each answer against the Lexicons that it
// was published with. Standard input: {url, did, owner, key (the owner's, hex), lexicons (ours), digest (of a
// blob)}. Prints one line of JSON, {calls: [names], answered: [methods]}; anything wrong ends it with an error.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { AtpAgent } from '@atproto/api'
import { XrpcClient } from '@atproto/xrpc'
import { Secp256k1Keypair } from '@atproto/crypto'
import { createServiceJwt } from '@atproto/xrpc-server'
import { readCar } from '@atproto/repo'

const { url, did, owner, key, lexicons, digest } = JSON.parse(readFileSync(0, 'utf8'))
const answered = new Set()
const plain = globalThis.fetch
globalThis.fetch = async (...args) => {
  const res = await plain(...args)
  const [, method] = new URL(res.url).pathname.split('/xrpc/')
  if (res.ok && method) answered.add(method)
  return res
}
const keypair = await Secp256k1Keypair.import(key)
const api = new AtpAgent({ service: url })
const ours = new XrpcClient(url, lexicons)

// options are those of a call that writes: its token is good for it alone.
const options = async (lxm, encoding = 'application/json') => ({
  encoding,
  headers: { authorization: `Bearer ${await createServiceJwt({ iss: owner, aud: did, lxm, keypair })}` },
})
const calls = []
const ok = async (name, call, look) => {
  calls.push(name)
  let res
  try {
    res = await call()
  } catch (err) {
    throw new Error(`${name}: ${err.error}: ${err.message}`, { cause: err })
  }
  assert.equal(res.success, true, name)
  try {
    await look(res.data, res.headers)
  } catch (err) {
    throw new Error(`${name}: ${JSON.stringify(res.data)}: ${err.message}`, { cause: err })
  }
  return res.data
}
const refused = async (name, call, error) => {
  calls.push(name)
  await assert.rejects(call, (err) => {
    assert.equal(err.error, error, `${name}: ${err.error}: ${err.message}`)
    return true
  })
}

const { repo, sync, server, identity } = api.com.atproto
const collection = 'com.example.note'
const note = (text) => ({ $type: collection, text, createdAt: new Date().toISOString() })
const at = (rkey) => ({ repo: did, collection, rkey })
const cidText = /^bafyrei[a-z2-7]{52}$/
const tid = /^[234567a-j][234567a-z]{12}$/
const write = (method, input) => async () => repo[method]({ repo: did, ...input }, await options(`com.atproto.repo.${method}`))

// Writing.
await ok('describeServer', () => server.describeServer(), (d) => assert.equal(d.did, did))
const created = await ok('createRecord', write('createRecord', { collection, record: note('one') }), (d) => {
  assert.match(d.uri, new RegExp(`^at://${did}/${collection}/[234567a-j][234567a-z]{12}$`))
  assert.match(d.cid, cidText)
  assert.match(d.commit.cid, cidText)
  assert.match(d.commit.rev, tid)
  assert.equal(d.validationStatus, 'unknown')
})
const put = await ok('putRecord', write('putRecord', { collection, rkey: 'a', record: note('two') }), (d) => assert.equal(d.uri, `at://${did}/${collection}/a`))
await ok('putRecord, swapped', write('putRecord', { collection, rkey: 'a', record: note('three'), swapRecord: put.cid, swapCommit: put.commit.cid }), (d) =>
  assert.notEqual(d.cid, put.cid))
await refused('putRecord, a swap that fails', write('putRecord', { collection, rkey: 'a', record: note('four'), swapRecord: put.cid }), 'InvalidSwap')
await refused('createRecord, a commit that is past', write('createRecord', { collection, record: note('x'), swapCommit: put.commit.cid }), 'InvalidSwap')
await refused('createRecord, an unknown Lexicon', write('createRecord', { collection, record: note('x'), validate: true }), 'InvalidRequest')
await ok('applyWrites', write('applyWrites', { writes: [
  { $type: 'com.atproto.repo.applyWrites#create', collection, rkey: 'b', value: note('five') },
  { $type: 'com.atproto.repo.applyWrites#create', collection, value: note('six') },
  { $type: 'com.atproto.repo.applyWrites#update', collection, rkey: 'a', value: note('seven') },
  { $type: 'com.atproto.repo.applyWrites#delete', collection, rkey: created.uri.split('/').at(-1) },
] }), (d) => {
  assert.deepEqual(d.results.map((r) => r.$type.split('#')[1]), ['createResult', 'createResult', 'updateResult', 'deleteResult'])
  assert.equal(d.results[0].uri, `at://${did}/${collection}/b`)
})
await refused('applyWrites, a swap that fails', write('applyWrites', { writes: [], swapCommit: put.commit.cid }), 'InvalidSwap')
await ok('deleteRecord', write('deleteRecord', { collection, rkey: 'b' }), (d) => assert.match(d.commit.rev, tid))
await ok('deleteRecord, again', write('deleteRecord', { collection, rkey: 'b' }), (d) => assert.equal(d.commit, undefined))
const png = Buffer.from('89504e470d0a1a0a', 'hex')
const { blob } = await ok('uploadBlob', async () => repo.uploadBlob(png, await options('com.atproto.repo.uploadBlob', 'image/png')), (d) => {
  assert.equal(d.blob.mimeType, 'image/png')
  assert.equal(d.blob.size, png.length)
})
await ok('putRecord of a profile', write('putRecord', { collection: 'app.bsky.actor.profile', rkey: 'self', validate: true, record: {
  $type: 'app.bsky.actor.profile', displayName: 'Hold', description: 'of images', avatar: blob, createdAt: new Date().toISOString(),
} }), (d) => assert.equal(d.validationStatus, 'valid'))
await ok('createRecord of a post', write('createRecord', { collection: 'app.bsky.feed.post', record: { $type: 'app.bsky.feed.post', text: 'hello', createdAt: new Date().toISOString() } }), (d) =>
  assert.equal(d.validationStatus, 'valid'))
await refused('createRecord, no token', () => repo.createRecord({ repo: did, collection, record: note('x') }), 'AuthRequired')

// Reading.
await ok('describeRepo', () => repo.describeRepo({ repo: did }), (d) => {
  assert.equal(d.did, did)
  assert.equal(d.didDoc.id, did)
  assert.equal(d.handleIsCorrect, true)
  assert.ok(d.collections.includes('io.atcr.hold.captain'))
})
const handle = (await repo.describeRepo({ repo: did })).data.handle
await ok('resolveHandle', () => identity.resolveHandle({ handle }), (d) => assert.equal(d.did, did))
await refused('resolveHandle, of nobody', () => identity.resolveHandle({ handle: 'nobody.test' }), 'HandleNotFound')
await ok('getRecord', () => repo.getRecord(at('a')), (d) => assert.equal(d.value.text, 'seven'))
await refused('getRecord, of none', () => repo.getRecord(at('b')), 'RecordNotFound')
const first = await ok('listRecords', () => repo.listRecords({ repo: did, collection, limit: 1 }), (d) => assert.equal(d.records.length, 1))
await ok('listRecords, the rest', () => repo.listRecords({ repo: did, collection, limit: 100, cursor: first.cursor }), (d) => assert.equal(d.records.length, 1))
await ok('listRecords, reverse', () => repo.listRecords({ repo: did, collection, reverse: true }), (d) => {
  assert.equal(d.records.length, 2)
  assert.deepEqual(d.records.at(-1), first.records[0])
})
const latest = await ok('getLatestCommit', () => sync.getLatestCommit({ did }), (d) => assert.match(d.rev, tid))
await ok('getRepoStatus', () => sync.getRepoStatus({ did }), (d) => assert.deepEqual(d, { did, active: true, rev: latest.rev }))
await ok('listRepos', () => sync.listRepos({ limit: 10 }), (d) => assert.deepEqual(d.repos, [{ did, head: latest.cid, rev: latest.rev, active: true }]))
const car = async (bytes) => {
  const { roots, blocks } = await readCar(new Uint8Array(bytes))
  return { root: roots[0]?.toString(), blocks }
}
const whole = await ok('getRepo', () => sync.getRepo({ did }), async (d) => assert.equal((await car(d)).root, latest.cid))
await ok('getRepo, since', () => sync.getRepo({ did, since: latest.rev }), async (d) => assert.ok((await car(d)).blocks.size < (await car(whole)).blocks.size))
await ok('getRecord of sync', () => sync.getRecord({ did, collection, rkey: 'a' }), async (d) => assert.equal((await car(d)).root, latest.cid))
await ok('getBlocks', () => sync.getBlocks({ did, cids: [latest.cid] }), async (d) => assert.equal((await car(d)).blocks.size, 1))
await ok('listBlobs', () => sync.listBlobs({ did }), (d) => assert.deepEqual(d.cids, [blob.ref.toString()]))
await ok('getBlob', () => sync.getBlob({ did, cid: blob.ref.toString() }), (d, headers) => {
  assert.deepEqual(Buffer.from(d), png)
  assert.equal(headers['content-security-policy'], "default-src 'none'; sandbox")
  assert.equal(headers['x-content-type-options'], 'nosniff')
})
for (const method of ['getRepo', 'getRepoStatus', 'getLatestCommit', 'listBlobs']) {
  await refused(`${method}, of nobody`, () => sync[method]({ did: 'did:plc:nobody' }), 'RepoNotFound')
}
await ok('getProfile', () => api.app.bsky.actor.getProfile({ actor: did }), (d) => {
  assert.equal(d.displayName, 'Hold')
  assert.equal(d.postsCount, 1)
  assert.ok(d.avatar.includes(`cid=${blob.ref}`))
})
await ok('getProfiles', () => api.app.bsky.actor.getProfiles({ actors: ['did:plc:nobody', handle] }), (d) => assert.equal(d.profiles.length, 1))

// Ours, by our Lexicons.
const post = async (method, input) => ours.call(`io.atcr.hold.${method}`, undefined, input, await options(`io.atcr.hold.${method}`))
await ok('getQuota', () => ours.call('io.atcr.hold.getQuota', { userDid: owner }), (d) => assert.equal(d.userDid, owner))
await ok('listTiers', () => ours.call('io.atcr.hold.listTiers'), (d) => assert.deepEqual(d.tiers, []))
await ok('initiateUpload', () => post('initiateUpload', { digest }), (d) => assert.ok(d.uploadUrl.includes('/u/')))
const begin = async () => (await post('initiateUpload', { digest })).data.uploadId
const uploadId = await begin()
const part = async (number) => ours.call('io.atcr.hold.uploadPart', undefined, new Uint8Array(Buffer.from('{}')), {
  encoding: 'application/octet-stream', headers: { ...(await options('io.atcr.hold.uploadPart')).headers, 'x-upload-id': uploadId, 'x-part-number': number },
})
await ok('getPartUploadUrl', () => post('getPartUploadUrl', { uploadId, partNumber: 1 }), (d) => assert.equal(d.headers['X-Upload-Id'], uploadId))
const { etag } = await ok('uploadPart', () => part('1'), (d) => assert.ok(d.etag))
await refused('uploadPart, of no number', () => part('none'), 'InvalidPartNumber')
await ok('completeUpload', () => post('completeUpload', { uploadId, digest, parts: [{ partNumber: 1, etag }] }), (d) => assert.deepEqual(d, { status: 'completed', digest }))
await refused('completeUpload, of no upload', () => post('completeUpload', { uploadId: 'none', digest, parts: [] }), 'InvalidUploadId')
await ok('abortUpload', async () => post('abortUpload', { uploadId: await begin() }), (d) => assert.deepEqual(d, { status: 'aborted' }))
await ok('notifyManifest', () => post('notifyManifest', {
  repository: 'app', userDid: owner, manifestDigest: digest, tag: 'latest', manifest: { mediaType: 'application/vnd.oci.image.manifest.v1+json', config: { digest, size: 1 } },
}), (d) => assert.equal(d.layersCreated, 1))
await ok('requestCrew', () => post('requestCrew', {}), (d) => assert.equal(d.status, 'already_member'))
await ok('exportUserData', async () => ours.call('io.atcr.hold.exportUserData', undefined, undefined, await options('io.atcr.hold.exportUserData')), (d) => {
  assert.equal(d.isCaptain, true)
  assert.equal(d.layerRecords.length, 1)
})
await ok('deleteUserData', () => post('deleteUserData', {}), (d) => assert.equal(d.layersDeleted, 1))

// What has no Lexicon.
assert.ok((await (await fetch(`${url}/xrpc/_health`)).json()).version)

console.log(JSON.stringify({ calls, answered: [...answered] }))
