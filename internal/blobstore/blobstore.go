// Package blobstore is the contract between a hold and the storage that its owner chose.
//
// It owns keys and bytes: how an object comes into being under a key and is read back. It refuses to own
// digests, owners and permissions: a store never hashes and never decides. Drivers are in the folders
// below; storetest is the suite that each must pass.
package blobstore

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"atcr.io/internal/oci"
)

// ErrNotFound says that no object has the key, or that the state of an unfinished object leads nowhere.
var ErrNotFound = errors.New("no such object")

// ErrNoSpace says that the storage is full or over its quota. Nothing under a key was changed.
var ErrNoSpace = errors.New("the storage is full")

// ErrPartTooSmall says that a part that is not the last of a multipart upload is smaller than the storage takes.
var ErrPartTooSmall = errors.New("a part that is not the last is too small: parts have at least 5 MiB")

// ErrNoBucket says that the bucket or folder does not exist or may not be used with these credentials.
var ErrNoBucket = errors.New("the storage cannot be used")

// Store is where objects live. Keys are slash-separated, relative, without empty or dot parts. Safe for
// concurrent use.
type Store interface {
	// Check finds out whether the storage can be used: reachable, bucket there, credentials good, clock
	// right. For start-up: its errors are sentences for an operator. Errors: ErrNoBucket and others.
	Check(ctx context.Context) error

	// Create begins an object. key is its final key where that is known, else "": the driver then keeps
	// the bytes aside. Nothing is visible under any final key before Commit.
	Create(ctx context.Context, key string) (Writer, error)

	// Resume goes on with what an earlier process began, from a Writer's State. Errors: ErrNotFound.
	Resume(ctx context.Context, state []byte) (Writer, error)

	// Discard frees what the Writer of that state left in the storage. It is not an error if that is
	// nothing, so it may be repeated.
	Discard(ctx context.Context, state []byte) error

	// Put makes a small object (at most MaxPutBytes) in one step: durable under key on a nil error.
	// An existing one is replaced as a whole.
	Put(ctx context.Context, key string, data []byte) error

	// Open reads an object. Errors: ErrNotFound.
	Open(ctx context.Context, key string) (Object, error)

	// Stat is an object's size in bytes. Errors: ErrNotFound.
	Stat(ctx context.Context, key string) (int64, error)

	// Delete removes an object. It is not an error if there was none.
	Delete(ctx context.Context, key string) error

	// List calls fn for every object whose key begins with prefix, in no promised order.
	List(ctx context.Context, prefix string, fn func(key string, size int64) error) error
}

// MaxPutBytes is the most that Put takes.
const MaxPutBytes = 1 << 20

// Object is an open object. Where the driver can, it is a *os.File, so that it can be sent without being
// copied. Seek and Read past an error of the network say so.
type Object interface {
	io.ReadSeekCloser
}

// Writer takes the bytes of one object in order. One goroutine at a time.
type Writer interface {
	// ReadFrom appends all of r and returns how many bytes of it were taken. It holds a few part buffers,
	// whatever r's length, and returns r's own error as it came: what was read before it was taken.
	// Errors: ErrNoSpace; after an error of the storage the Writer is of no use but for Close, and Resume
	// goes on from the last State.
	io.ReaderFrom

	// Size is how many bytes were taken in all, those of earlier processes included.
	Size() int64

	// State describes the bytes taken so far, for Resume and Discard, at most 1 MiB. After it returned they
	// outlive a crash of the process (not of the machine; those that are lost with it show as an error of Commit).
	State(ctx context.Context) ([]byte, error)

	// Commit makes the object of all bytes taken, copying none of them, and returns the key under which it
	// is durable: final where the driver could (always on a filesystem, always for an object of at most one
	// part, and where Create was told this key), else the key it already has. An object that stands under
	// the final key is replaced as a whole by the same bytes. Commit may be repeated after an error and
	// after a crash (by Resume) with the same final key.
	// Errors: ErrNoSpace.
	Commit(ctx context.Context, final string) (key string, err error)

	// Close gives back what the Writer holds in this process, and leaves the storage as it is.
	Close() error
}

// Sealer is a Writer whose Commit may take long although all bytes are in the storage: it has to put them together.
type Sealer interface {
	Writer
	// Seal makes all bytes taken durable, beyond a crash of the machine, so that Commit alone is missing. From then on
	// State describes them without anything outside the storage, and nothing can be added. ok is false where Commit
	// takes no longer than sealing would: the Writer is then as before. Errors: those of Commit.
	Seal(ctx context.Context) (ok bool, err error)
	// Key is where Commit makes the object, or has made it; "" where it is still open. No other Writer has a key below
	// StagingPrefix in common with it.
	Key() string
}

// Presigner is a store that can let others reach an object without passing the hold.
type Presigner interface {
	// PresignGet is a URL that answers GET (or, with method HEAD, HEAD) of the object for ttl, served as
	// application/octet-stream. It costs no request. Errors: a key of another form.
	PresignGet(ctx context.Context, method, key string, ttl time.Duration) (string, error)
}

// Multipart is a store to which others can send parts without passing the hold. Such an object always
// gets a key of its own, never a blob's: what it holds is known only once it was read back.
type Multipart interface {
	// NewMultipart begins an upload and returns its state, for the other calls and for Discard.
	NewMultipart(ctx context.Context) (state []byte, err error)
	// PresignPart is a URL for a PUT of part number (1 to 10,000), to be used within ttl.
	PresignPart(ctx context.Context, state []byte, number int, ttl time.Duration) (url string, header map[string]string, err error)
	// CompleteMultipart joins the parts, in the order given, and returns the object's key and size.
	// Errors: ErrNotFound where the upload is gone or a part was never sent.
	CompleteMultipart(ctx context.Context, state []byte, parts []Part) (key string, size int64, err error)
}

// Checker is a store that can be told beforehand what an object's bytes must be. Whether it then refuses other
// bytes is for the caller to find out: not all servers do.
type Checker interface {
	// PresignPut is a URL for one PUT of an object whose SHA-256 is sum, with header, within ttl.
	PresignPut(ctx context.Context, key string, sum [32]byte, ttl time.Duration) (url string, header map[string]string, err error)
}

// Part is a part as the storage acknowledged it.
type Part struct {
	Number int
	ETag   string
}

// BlobKey is the final key of a blob, the same as other registries use, so that a bucket can be taken over.
func BlobKey(d oci.Digest) string {
	h := d.Hex()
	return "docker/registry/v2/blobs/" + d.Algorithm() + "/" + h[:2] + "/" + h + "/data"
}

// PointerKey is the key of the small object that says where a blob is whose bytes came before its digest.
func PointerKey(d oci.Digest) string {
	return "atcr/pointers/" + d.Algorithm() + "/" + d.Hex()
}

// KeyDigest is the digest of which key is the final key, or the pointer's.
func KeyDigest(key string) (oci.Digest, bool) {
	algorithm, rest, ok := strings.Cut(strings.TrimPrefix(key, "atcr/pointers/"), "/")
	if strings.HasPrefix(key, "docker/registry/v2/blobs/") {
		algorithm, rest, ok = strings.Cut(strings.TrimPrefix(key, "docker/registry/v2/blobs/"), "/")
		rest = strings.TrimSuffix(rest[min(3, len(rest)):], "/data")
	}
	d, err := oci.ParseDigest(algorithm + ":" + rest)
	if !ok || err != nil || key != BlobKey(d) && key != PointerKey(d) {
		return "", false
	}
	return d, true
}

// StagingPrefix is where objects are that have no final key (yet).
const StagingPrefix = "atcr/uploads/"
