package appview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/xrpc"
)

// found is a record as its repo has it.
type found[T any] struct {
	Rkey  string
	CID   string
	Value T
	// Malformed: there is a record, but none that T can be. Value is empty.
	Malformed bool
}

// getRecord reads a record without anybody's session; nil where there is none. Errors: *xrpc.UpstreamError.
func getRecord[T any](ctx context.Context, u xrpc.Upstream, base string, did syntax.DID, collection, rkey string) (*found[T], error) {
	var out struct {
		CID   string          `json:"cid"`
		Value json.RawMessage `json:"value"`
	}
	err := u.JSON(ctx, xrpc.UpstreamCall{
		Base: base, NSID: "com.atproto.repo.getRecord", Limit: maxRecordAnswerBytes,
		Query: url.Values{"repo": {did.String()}, "collection": {collection}, "rkey": {rkey}},
	}, &out)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := &found[T]{Rkey: rkey, CID: out.CID}
	if json.Unmarshal(out.Value, &f.Value) != nil {
		return &found[T]{Rkey: rkey, CID: out.CID, Malformed: true}, nil
	}
	return f, nil
}

// maxRecordAnswerBytes is what getRecord may answer: a record of 1,000,000 bytes, which JSON spells longer than the
// repo's own form does.
const maxRecordAnswerBytes = 2 << 20

const (
	listPageRecords = 50
	listPageBytes   = 8 << 20 // 50 records of the size that this AppView writes at most, and some
	// A list that is longer than these is none that can be read here: it fails, since nobody may take a part for the whole.
	listPages = 2000 // 100,000 records
	listBytes = 256 << 20
)

// collections reads whole collections of repos.
type collections struct {
	upstream xrpc.Upstream
	turns    *turns
}

// listRecords gives each record of a collection to visit, newest keys first, until it returns false. Records of
// another form are left out. Errors: *xrpc.UpstreamError, of a list without end too, whose cursors go in a circle or that is
// too long: then what was visited is not all; *oci.Error where too many are read.
func listRecords[T any](ctx context.Context, c collections, of owner, collection string, visit func(found[T]) bool) error {
	const nsid = "com.atproto.repo.listRecords"
	done, err := c.turns.take(ctx, xrpc.HostOf(of.PDS))
	if err != nil {
		return err
	}
	defer done()
	type page struct {
		Cursor  string `json:"cursor"`
		Records []struct {
			URI   string          `json:"uri"`
			CID   string          `json:"cid"`
			Value json.RawMessage `json:"value"`
		} `json:"records"`
	}
	query := url.Values{"repo": {of.DID.String()}, "collection": {collection}, "limit": {strconv.Itoa(listPageRecords)}}
	room := listBytes
	err = xrpc.Pages(ctx, c.upstream, xrpc.UpstreamCall{Base: of.PDS, NSID: nsid, Query: query, Limit: listPageBytes}, listPages, func(p page) (int, string, error) {
		for _, r := range p.Records {
			room -= len(r.Value)
			f := found[T]{Rkey: r.URI[strings.LastIndexByte(r.URI, '/')+1:], CID: r.CID}
			if json.Unmarshal(r.Value, &f.Value) == nil && !visit(f) {
				return 0, "", nil
			}
		}
		if p.Cursor != "" && room < 0 {
			return 0, "", &xrpc.UpstreamError{Host: xrpc.HostOf(of.PDS), NSID: nsid, Status: http.StatusOK, Invalid: true, Err: fmt.Errorf("%s has more than can be listed", collection)}
		}
		return len(p.Records), p.Cursor, nil
	})
	if missing(err) {
		return nil
	}
	return err
}

// errBlobMissing says that the PDS has no such blob.
var errBlobMissing = errors.New("the PDS does not have the bytes")

// getAtBlob reads an atproto blob of at most oci.MaxManifestBytes.
// Errors: errBlobMissing, *xrpc.UpstreamError.
func getAtBlob(ctx context.Context, u xrpc.Upstream, of owner, cid string) ([]byte, error) {
	body, _, err := u.Bytes(ctx, xrpc.UpstreamCall{
		Base: of.PDS, NSID: "com.atproto.sync.getBlob", Method: http.MethodGet,
		Query: url.Values{"did": {of.DID.String()}, "cid": {cid}}, Limit: oci.MaxManifestBytes,
	})
	if missing(err) {
		return nil, errBlobMissing
	}
	return body, err
}

// cidOf is the CID of bytes with a sha256 digest: version 1, raw. It is "" for other algorithms.
func cidOf(d oci.Digest) string { return atcr.ContentCID(d.String()) }

// rkeyOf is the record key of an at-uri of did's collection, "" where uri is something else.
func rkeyOf(uri string, did syntax.DID, collection string) string {
	rkey, ok := strings.CutPrefix(uri, "at://"+did.String()+"/"+collection+"/")
	if _, err := syntax.ParseRecordKey(rkey); !ok || err != nil {
		return ""
	}
	return rkey
}
