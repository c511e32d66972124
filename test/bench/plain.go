package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// startPlain runs this program as a server that does what a push cannot do without: bytes from the connection through
// a hash into a file, and fsync.
func (b *bench) startPlain(ctx context.Context) (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "plain")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := start(ctx, b.dir, "plain", "http://"+address, "http://"+address+"/", nil, self, "-plain", address+","+dir)
	if err != nil {
		return nil, err
	}
	b.stoppers = append(b.stoppers, p.stop)
	return p, nil
}

// plainServer takes one upload at a time, by the calls of the distribution API.
type plainServer struct {
	dir  string
	mu   sync.Mutex
	file *os.File
	hash hash.Hash
}

func servePlain(ctx context.Context, spec string) error {
	address, dir, _ := strings.Cut(spec, ",")
	l, err := listen(ctx, address)
	if err != nil {
		return err
	}
	s := &plainServer{dir: dir}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, err := s.take(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Location", "/upload")
		w.WriteHeader(status)
	})}
	return server.Serve(l)
}

func (s *plainServer) take(r *http.Request) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch r.Method {
	case http.MethodPost:
		s.hash = sha256.New()
		s.file, err = os.CreateTemp(s.dir, "blob-")
		return http.StatusAccepted, err
	case http.MethodPatch:
		_, err = io.CopyBuffer(io.MultiWriter(s.file, s.hash), r.Body, make([]byte, 256<<10))
		return http.StatusAccepted, err
	case http.MethodPut:
		if r.URL.Query().Get("digest") != "sha256:"+hex.EncodeToString(s.hash.Sum(nil)) {
			return 0, errors.New("another digest")
		}
		return http.StatusCreated, errors.Join(s.file.Sync(), s.file.Close())
	}
	return http.StatusOK, nil
}
