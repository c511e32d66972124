// What the reference implementation makes of a hold's repo. Arguments: the hold's URL, its DID, its key as a
// did:key, a record's path, and a file with the repo as it was before the last writes. Prints one line of JSON:
// {records, kinds, changed, events}; anything wrong ends it with an error.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { IdResolver } from '@atproto/identity'
import { MemoryBlockstore, Repo, readCarWithRoot, verifyDiffCar, verifyRecords, verifyRepoCar, verifyProofs } from '@atproto/repo'
import { Firehose } from '@atproto/sync'
import { Frame } from '@atproto/xrpc-server'

const [url, did, key, path, before] = process.argv.slice(1)
const [collection, rkey] = path.split('/')

const fetched = async (method, params) => {
  const res = await fetch(`${url}/xrpc/${method}?${new URLSearchParams(params)}`)
  assert.equal(res.status, 200, `${method}: ${await res.clone().text()}`)
  return new Uint8Array(await res.arrayBuffer())
}

// The whole repo: every block is there, every hash right, the signature good.
const repo = await verifyRepoCar(await fetched('com.atproto.sync.getRepo', { did }), did, key)
const latest = JSON.parse(Buffer.from(await fetched('com.atproto.sync.getLatestCommit', { did })))
assert.equal(repo.commit.cid.toString(), latest.cid)

// A proof that a record is there, and one that none is.
const listed = JSON.parse(Buffer.from(await fetched('com.atproto.repo.getRecord', { repo: did, collection, rkey })))
const present = await fetched('com.atproto.sync.getRecord', { did, collection, rkey })
const records = await verifyRecords(present, did, key)
assert.ok(records.some((r) => r.collection === collection && r.rkey === rkey), 'the proof does not have the record')
const cid = repo.creates.find((c) => c.collection === collection && c.rkey === rkey).cid
assert.equal(cid.toString(), listed.cid)
const absent = await fetched('com.atproto.sync.getRecord', { did, collection, rkey: 'absent' })
for (const [proof, claim, good] of [
  [present, { collection, rkey, cid }, true],
  [absent, { collection, rkey: 'absent', cid: null }, true],
  [present, { collection, rkey, cid: null }, false],
  [absent, { collection, rkey: 'absent', cid }, false],
]) {
  const { verified, unverified } = await verifyProofs(proof, [claim], did, key)
  assert.deepEqual([verified.length, unverified.length], good ? [1, 0] : [0, 1], `claim ${JSON.stringify(claim)}`)
}

// Every frame of the firehose, from the beginning to the newest commit.
const socket = new WebSocket(`${url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos?cursor=0`)
socket.binaryType = 'arraybuffer'
const kinds = {}
let last = 0
await new Promise((done, failed) => {
  socket.onerror = () => failed(new Error('the stream broke'))
  socket.onmessage = ({ data }) => {
    try {
      const frame = Frame.fromBytes(new Uint8Array(data))
      assert.ok(frame.isMessage(), `no message: ${JSON.stringify(frame)}`)
      assert.ok(frame.body.seq > last, 'the sequence goes back')
      last = frame.body.seq
      kinds[frame.type] = (kinds[frame.type] ?? 0) + 1
      if (frame.type === '#commit' && frame.body.commit.toString() === latest.cid) done()
    } catch (err) {
      failed(err)
    }
  }
})
socket.close()

// From an older copy to the head, by what getRepo sends for its revision.
const old = await readCarWithRoot(new Uint8Array(readFileSync(before)))
const copy = await Repo.load(new MemoryBlockstore(old.blocks), old.root)
const update = await verifyDiffCar(copy, await fetched('com.atproto.sync.getRepo', { did, since: copy.commit.rev }), did, key)
assert.equal(update.commit.cid.toString(), latest.cid)
const changed = {}
for (const { action } of update.writes) changed[action] = (changed[action] ?? 0) + 1

// The consumer that indexers use: it finds the hold's key by itself, and believes no commit without its proof.
const events = {}
await new Promise((done, failed) => {
  const firehose = new Firehose({
    service: url.replace('http', 'ws'),
    getCursor: () => 0,
    idResolver: new IdResolver({ fetch: (input, init) => fetch(String(input.url ?? input).replace(`https://${did.slice('did:web:'.length)}`, url), init) }),
    unauthenticatedHandles: true,
    onError: failed,
    handleEvent: async (e) => {
      events[e.event] = (events[e.event] ?? 0) + 1
      if (e.seq === last) done(firehose.destroy())
    },
  })
  firehose.start()
})
console.log(JSON.stringify({ records: repo.creates.length, kinds, changed, events }))
