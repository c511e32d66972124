// What the reference implementation makes of a hold's repo. Arguments: the hold's URL, its DID, its key as a
// did:key, and a record's path. Prints one line of JSON: {records, frames}; anything wrong ends it with an error.
import assert from 'node:assert/strict'
import { verifyRecords, verifyRepoCar, verifyProofs } from '@atproto/repo'
import { Frame } from '@atproto/xrpc-server'

const [url, did, key, path] = process.argv.slice(1)
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
console.log(JSON.stringify({ records: repo.creates.length, kinds }))
