package appview

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/test/databases"
)

// Would catch processes that share a database and read nothing of each other's, without a word.
func TestSameSecret(t *testing.T) {
	t.Parallel()
	db, err := openDatabase(t.Context(), Config{DatabaseURL: databases.NewPostgres(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	secret := func(n byte) []byte { return bytes.Repeat([]byte{n}, secretBytes) }
	for i, test := range []struct {
		secrets [][]byte
		want    error
	}{
		{[][]byte{secret(1)}, nil}, {[][]byte{secret(1)}, nil}, {[][]byte{secret(2)}, errOtherSecret}, {[][]byte{secret(1)}, nil},
		{[][]byte{secret(3), secret(1)}, nil}, {[][]byte{secret(3)}, nil}, {[][]byte{secret(2), secret(4)}, errOtherSecret}, // after a rotation
	} {
		if err := sameSecret(t.Context(), db, test.secrets); !errors.Is(err, test.want) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// Would catch an AppView that starts without its database, and an operator left to guess which setting is wrong.
func TestUnreachableDatabase(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := Config{DatabaseURL: "postgres://me:secretword@" + nobody + "/atcr", DatabaseDir: dir, SecretKeyFile: filepath.Join(dir, "secret.key")}
	_, err = open(t.Context(), c, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), time.Now)
	if err == nil || !strings.HasPrefix(err.Error(), "ATCR_DATABASE_URL: ") || !strings.Contains(err.Error(), nobody) || strings.Contains(err.Error(), "secretword") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "db.sqlite3")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it made a database of its own: %v", err)
	}
}
