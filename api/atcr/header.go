package atcr

// JoiningHeader is on a hold's answer to the PUT that ends an upload when its storage has yet to make an object of the bytes:
// they are durable, and whoever relies on the blob asks for it once more, which waits. It is on the 503 that this may come to,
// too.
const JoiningHeader = "Atcr-Joining"
