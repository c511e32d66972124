package hold

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/blobstore/s3"
	"atcr.io/internal/oci"
)

// joinsWhenTold holds up each request that has parts joined until join is called.
func joinsWhenTold(t *testing.T) (before func(*http.Request), join func()) {
	t.Helper()
	told := make(chan struct{})
	return func(r *http.Request) {
		if r.Method != http.MethodPost || !r.URL.Query().Has("uploadId") {
			return
		}
		select {
		case <-told:
		case <-r.Context().Done():
		}
	}, func() { close(told) }
}

// pushJoined uploads a blob of two parts, which the storage has yet to join.
func (s *server) pushJoined(t *testing.T, data []byte) oci.Digest {
	t.Helper()
	d := oci.FromBytes(data)
	_, target := s.begin(t, owner)
	if a := s.send(t, http.MethodPut, target+"?digest="+d.String(), "", bytes.NewReader(data)); a.status != http.StatusCreated || a.header.Get(atcr.JoiningHeader) != "true" {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	return d
}

// blobReads are all the ways to ask for a blob: method and path.
func (s *server) blobReads(d oci.Digest) (all [][2]string) {
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		linked := s.links.Load().path(link{Method: method, Digest: d, Viewer: owner, Expires: s.now().Add(linkTTL).Unix()})
		all = append(all, [2]string{method, s.blobPath(d)}, [2]string{http.MethodGet, s.blobPath(d) + "&method=" + method}, [2]string{method, linked})
	}
	return all
}

// Would catch a reader who is told of a blob before there is an object, or that there is none, and one who is not told that it
// is on its way, or waits for ever.
func TestReadsWhileJoining(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("x"), s3.PartBytes+1)
	for name, public := range map[string]bool{"public": true, "private": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before, join := joinsWhenTold(t)
			s := startHold(t, newPeople(t), onS3(t, before, func(c *Config) { c.Public, c.joinWait = public, time.Millisecond }))
			d := s.pushJoined(t, data)
			token := s.token(t, owner, getBlobNSID)
			for _, read := range s.blobReads(d) {
				a := s.send(t, read[0], read[1], token, nil)
				if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") != "5" || a.header.Get(atcr.JoiningHeader) != "true" {
					t.Errorf("%v while the parts are joined: %d %v %s", read, a.status, a.header, a.body)
				}
			}
			join()
			for _, read := range s.blobReads(d) {
				a := s.send(t, read[0], read[1], token, nil)
				for a.header.Get(atcr.JoiningHeader) != "" {
					a = s.send(t, read[0], read[1], token, nil)
				}
				if a.status == http.StatusTemporaryRedirect {
					a = s.send(t, read[0], a.header.Get("Location"), "", nil)
				}
				if a.status != http.StatusOK || read[0] == http.MethodHead && a.header.Get("Content-Length") != "8388609" {
					t.Errorf("%v afterwards: %d %v %.200s", read, a.status, a.header, a.body)
				}
			}
		})
	}
}

// Would catch a reader who is sent away although the storage is done soon.
func TestReadsThatWaitForAJoin(t *testing.T) {
	t.Parallel()
	before, join := joinsWhenTold(t)
	s := startHold(t, newPeople(t), onS3(t, before, func(c *Config) { c.DisablePresigned = true }))
	data := bytes.Repeat([]byte("x"), s3.PartBytes+1)
	d := s.pushJoined(t, data)
	token := s.token(t, owner, getBlobNSID)
	go join()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		if a := s.send(t, method, s.blobPath(d), token, nil); a.status != http.StatusOK || a.body != "" && a.body != string(data) {
			t.Errorf("%d %v, %d bytes", a.status, a.header, len(a.body))
		}
	}
}

// Would catch somebody who cannot read their own blob at a public hold, which is not verified yet, while another's upload of it
// is joined.
func TestOwnBlobWhileAnothersIsJoined(t *testing.T) {
	t.Parallel()
	slow, join := joinsWhenTold(t)
	defer join()
	before := func(r *http.Request) {
		if slow(r); r.URL.Path == "/blobs/atcr/uploads/own" { // nor is it verified meanwhile
			<-r.Context().Done()
		}
	}
	s := startHold(t, newPeople(t), onS3(t, before, func(c *Config) { c.Public, c.joinWait = true, time.Millisecond }))
	data := bytes.Repeat([]byte("x"), s3.PartBytes+1)
	if err := s.db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO blob (digest, verified, uploader, size, key, created_at, touched_at) VALUES (?,0,?,7,'atcr/uploads/own',?,?)`,
			oci.FromBytes(data).String(), writer.String(), s.now().UnixMilli(), s.now().UnixMilli())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	d := s.pushJoined(t, data)
	for did, want := range map[syntax.DID]int{writer: http.StatusOK, stranger: http.StatusServiceUnavailable, nobody: http.StatusServiceUnavailable} {
		for _, path := range []string{s.blobPath(d), s.blobPath(d) + "&method=HEAD"} {
			a := s.send(t, http.MethodHead, path, s.token(t, did, getBlobNSID), nil)
			if a.status != want {
				t.Errorf("%q: %d %v", did, a.status, a.header)
			}
		}
	}
}

// run serves the hold on l as its command does, until end or the test's.
func (s *server) run(t *testing.T, l net.Listener) (end func()) {
	t.Helper()
	if err := s.config.Validate(); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ready, ended := make(chan *Hold, 1), make(chan error, 1)
	go func() {
		ended <- Run(ctx, s.config, Options{Logger: slog.New(slog.DiscardHandler), Listener: l, Ready: func(h *Hold) { ready <- h }})
	}()
	select {
	case s.Hold = <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return end
}

// Would catch a hold that is asked to stop and goes on for as long as somebody waits for a join.
func TestStopWhileJoining(t *testing.T) {
	t.Parallel()
	before, join := joinsWhenTold(t)
	defer join()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := filesystemConfig(t)
	p := newPeople(t)
	c.PublicURL, c.Owner, c.PLCURL, c.DebugAddr = "http://"+l.Addr().String(), owner.String(), p.url, ""
	onS3(t, before, func(c *Config) { c.joinWait, c.Grace = time.Hour, 10*time.Second })(&c)
	s := &server{people: p, config: c, client: http.DefaultClient}
	end := s.run(t, l)
	d := s.pushJoined(t, bytes.Repeat([]byte("x"), s3.PartBytes+1))
	if a := s.addCrew(t, owner, reader, "blob:read"); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	go func() {
		for p.asked("/"+reader.String()) == 0 { // then the hold has the request
			time.Sleep(time.Millisecond)
		}
		end()
	}()
	a := s.send(t, http.MethodGet, s.blobPath(d), s.token(t, reader, getBlobNSID), nil)
	if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || a.header.Get(atcr.JoiningHeader) != "true" {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
}
