package ingest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/ipfs/go-cid"

	"atcr.io/test/archive"
	"atcr.io/test/vectors"
)

func testIngester() *Ingester { return &Ingester{log: slog.New(slog.NewTextHandler(io.Discard, nil))} }

// publishedCommits are events of the network's firehose.
func publishedCommits(t testing.TB) map[string]comatproto.SyncSubscribeRepos_Commit {
	t.Helper()
	out := map[string]comatproto.SyncSubscribeRepos_Commit{}
	for _, name := range []string{"4621317030", "4621317332", "4621332152", "4623075231"} {
		var m comatproto.SyncSubscribeRepos_Commit
		if err := json.Unmarshal(vectors.Read(t, "atproto/repo/testdata/firehose_commit_"+name+".json"), &m); err != nil {
			t.Fatal(err)
		}
		out[name] = m
	}
	return out
}

// Would catch text that becomes other text, and is believed.
func TestRecordText(t *testing.T) {
	t.Parallel()
	for record, want := range map[string]string{
		"\xa1\x61a\x61b":                         `{"a":"b"}`,
		"\xa1\x61a\x61\xff":                      "null",
		"\xa1\x61\xff\x61a":                      "null",
		"\xa1\x61a\x82\x01\xa1\x61b\x62\xc3\x28": "null",
		"\xa1\x61a\x63\xef\xbf\xbd":              `{"a":"\ufffd"}`, // which somebody wrote
	} {
		if got := recordJSON([]byte(record)); string(got) != strings.ReplaceAll(want, `\ufffd`, "\ufffd") {
			t.Errorf("%q is read as %s", record, got)
		}
	}
}

// Would catch a reading of commits that is not the network's.
func TestPublishedCommits(t *testing.T) {
	t.Parallel()
	for name, m := range publishedCommits(t) {
		c, err := readCAR(m.Blocks)
		if err != nil {
			t.Fatal(err)
		}
		commit, err := c.commit()
		if err != nil || c.root != cid.Cid(m.Commit) || commit.Rev != m.Rev {
			t.Fatalf("%s: %+v, %v", name, commit, err)
		}
		prev, err := c.inverted(t.Context(), commit.Data, &m)
		if err != nil || m.PrevData != nil && prev == "" {
			t.Errorf("%s: %q, %v", name, prev, err)
		}
		for _, op := range m.Ops {
			value, err := c.find(commit.Data, op.Path)
			if err != nil || op.Action == "delete" && value.Defined() || op.Action != "delete" && value != cid.Cid(*op.Cid) {
				t.Errorf("%s: %s is %v, %v", name, op.Path, value, err)
			}
		}
		if m.PrevData == nil {
			continue
		}
		m.Ops = m.Ops[1:] // an operation that is hidden
		if _, err := c.inverted(t.Context(), commit.Data, &m); err == nil {
			t.Errorf("%s: a hidden operation is not seen", name)
		}
	}
}

// Would catch bytes of others that end the process, or take more memory than they are.
func FuzzReadCAR(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0xa2})
	for _, m := range publishedCommits(f) {
		f.Add([]byte(m.Blocks))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		raw = archive.Mend(raw) // else nothing but the seeds has the right hashes
		c, err := readCAR(raw)
		if err != nil {
			if !errors.Is(err, errInvalid) {
				t.Error(err)
			}
			return
		}
		size := 0
		for id, block := range c.blocks {
			size += len(block)
			if sum(id.Prefix().Codec, block) != id {
				t.Errorf("%s has other bytes", id)
			}
		}
		if size > len(raw) {
			t.Errorf("%d bytes became %d", len(raw), size)
		}
		commit, err := c.commit()
		if err != nil {
			return
		}
		records := map[string]cid.Cid{}
		err = c.walk(commit.Data, "", "\xff", func(path string, value cid.Cid) error {
			records[path] = value
			if block, err := c.record(value); err == nil {
				if text := recordJSON(block); !json.Valid(text) || bytes.Contains(text, []byte(`\ufffd`)) && !bytes.Contains(block, []byte("\\ufffd")) {
					t.Errorf("%x is read as %s", block, text)
				}
			}
			return nil
		})
		if err != nil {
			return
		}
		for path, value := range records {
			if got, err := c.find(commit.Data, path); err != nil || got != value {
				t.Errorf("%q is %v, %v; the walk found %v", path, got, err, value)
			}
		}
	})
}

// Would catch a frame that ends the process.
func FuzzParseFrame(f *testing.F) {
	f.Add([]byte{0xa2, 0x61, 't', 0x67, '#', 'c', 'o', 'm', 'm', 'i', 't', 0x62, 'o', 'p', 0x01, 0xa0})
	f.Add([]byte{0xa1, 0x62, 'o', 'p', 0x20, 0xa1, 0x65, 'e', 'r', 'r', 'o', 'r', 0x61, 'x'})
	i := testIngester()
	f.Fuzz(func(t *testing.T, raw []byte) {
		if e, err := i.parseFrame(raw); err == nil && e.seq < 0 {
			t.Error("a seq below zero")
		}
	})
}
