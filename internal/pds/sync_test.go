package pds_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/ipfs/go-cid"

	"atcr.io/internal/pds"
)

// blocksOf reads a CAR, and compares each block with its CID.
func blocksOf(t testing.TB, body []byte) (header []byte, blocks map[cid.Cid][]byte) {
	t.Helper()
	section := func() []byte {
		n, size := binary.Uvarint(body)
		if size <= 0 || n > uint64(len(body)-size) {
			t.Fatalf("a section of %d bytes, %d are left", n, len(body))
		}
		out := body[size : size+int(n)]
		body = body[size+int(n):]
		return out
	}
	header, blocks = section(), map[cid.Cid][]byte{}
	for len(body) > 0 {
		raw := section()
		n, c, err := cid.CidFromBytes(raw)
		if err != nil {
			t.Fatal(err)
		}
		if sum, err := c.Prefix().Sum(raw[n:]); err != nil || sum != c || blocks[c] != nil {
			t.Errorf("%s is %s, or comes twice: %v", c, sum, err)
		}
		blocks[c] = raw[n:]
	}
	return header, blocks
}

// Would catch a proof that does not prove: that the record is there, or that it is not, is all that whoever
// asks may believe.
func TestGetRecordProof(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 200)
	head, err := s.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := "com.atproto.sync.getRecord?did=" + did.String() + "&collection=" + collection.String() + "&rkey="
	for rkey, there := range map[string]bool{"k000": true, "k099": true, "k199": true, "a": false, "k0995": false, "z": false} {
		a := s.do(t, http.MethodGet, path+rkey, nil)
		if a.status != 200 || a.header.Get("Content-Type") != "application/vnd.ipld.car" {
			t.Fatalf("%s: %d %s", rkey, a.status, a.body)
		}
		header, blocks := blocksOf(t, a.body)
		if !bytes.Contains(header, head.CID.Bytes()) || blocks[head.CID] == nil || blocks[head.Data] == nil || len(blocks) > 12 {
			t.Errorf("%s: header %x, %d blocks", rkey, header, len(blocks))
		}
		_, partial, err := repo.LoadRepoFromCAR(t.Context(), bytes.NewReader(a.body))
		if err != nil {
			t.Fatalf("%s: %v", rkey, err)
		}
		c, err := partial.MST.Get([]byte(collection.String() + "/" + rkey))
		if err != nil || (c != nil) != there || there && blocks[*c] == nil {
			t.Errorf("%s: %v %v", rkey, c, err)
		}
	}
	for _, bad := range []string{"", "..", "a&rkey=b"} {
		if a := s.do(t, http.MethodGet, path+bad, nil); a.errorName() != "InvalidRequest" {
			t.Errorf("%q: %d", bad, a.status)
		}
	}
	if _, err := s.repo.Apply(t.Context(), []pds.Write{put("after", 1)}, nil); err != nil {
		t.Errorf("a write after the proofs: %v", err)
	}
}

// Would catch blocks that were not asked for, or a missing one that is passed over.
func TestGetBlocks(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	s.fill(t, 100)
	head, err := s.repo.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	record, err := s.repo.GetRecord(t.Context(), collection, "k042")
	if err != nil {
		t.Fatal(err)
	}
	path := "com.atproto.sync.getBlocks?did=" + did.String()
	want := []cid.Cid{head.CID, head.Data, record.CID}
	query := path
	for _, c := range append(want, record.CID) { // one of them twice
		query += "&cids=" + c.String()
	}
	a := s.do(t, http.MethodGet, query, nil)
	header, blocks := blocksOf(t, a.body)
	if a.status != 200 || string(header) != "\xa2eroots\x80gversion\x01" || len(blocks) != len(want) {
		t.Errorf("%d, %d blocks", a.status, len(blocks))
	}
	for _, c := range want {
		if blocks[c] == nil {
			t.Errorf("%s is missing", c)
		}
	}
	for query, want := range map[string]string{
		"":                                   "InvalidRequest",
		"&cids=x":                            "InvalidRequest",
		"&cids=" + noBlob:                    "BlockNotFound",
		strings.Repeat("&cids="+noBlob, 201): "InvalidRequest",
	} {
		if a := s.do(t, http.MethodGet, path+query, nil); a.errorName() != want || a.status != 400 {
			t.Errorf("%.80s: %d %.200s", query, a.status, a.body)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(s.path), ".export*"))
	if err != nil || len(left) != 0 {
		t.Errorf("files are left: %v %v", left, err)
	}
	if _, err := os.Stat(s.path); err != nil {
		t.Error(err)
	}
}

// Would catch a blob that no record names in the list, and a page's border.
func TestListBlobs(t *testing.T) {
	t.Parallel()
	s := newSite(t, pds.Config{})
	var cids []string
	rev := ""
	for i := range 5 {
		b, err := s.repo.PutBlob(t.Context(), "text/plain", fmt.Append(nil, i))
		if err != nil {
			t.Fatal(err)
		}
		write := put(fmt.Sprintf("a%d", i), i)
		write.Value = fmt.Appendf(nil, `{"b":{"$type":"blob","ref":{"$link":%q},"mimeType":"text/plain","size":1}}`, b.CID)
		again := write
		again.Rkey = syntax.RecordKey(fmt.Sprintf("b%d", i)) // two records name it
		result, err := s.repo.Apply(t.Context(), []pds.Write{write, again}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if cids = append(cids, b.CID.String()); i == 3 {
			rev = result.Rev
		}
	}
	if _, err := s.repo.PutBlob(t.Context(), "text/plain", []byte("loose")); err != nil {
		t.Fatal(err)
	}
	last := cids[4]
	slices.Sort(cids)
	var got []string
	for cursor, pages := "", 0; pages < 10; pages++ {
		var out struct {
			Cursor string
			CIDs   []string
		}
		s.get(t, "com.atproto.sync.listBlobs?limit=2&did="+did.String()+"&cursor="+cursor, &out)
		got = append(got, out.CIDs...)
		if cursor = out.Cursor; cursor == "" {
			break
		}
	}
	if !slices.Equal(got, cids) {
		t.Errorf("%v, want %v", got, cids)
	}
	var out struct{ CIDs []string }
	if s.get(t, "com.atproto.sync.listBlobs?did="+did.String()+"&since="+rev, &out); !slices.Equal(out.CIDs, []string{last}) {
		t.Errorf("since: %v", out.CIDs)
	}
}
