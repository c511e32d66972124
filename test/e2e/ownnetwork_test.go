package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"atcr.io/test/components"
)

const (
	// programsEnv is set in a test that runs in a network of its own: the folder with the built daemons.
	programsEnv = "ATCR_E2E_PROGRAMS"
	// certificateEnv names the file with the certificate for the network's names and its key.
	certificateEnv = "ATCR_E2E_CERTIFICATE"
)

// ownNetwork has a test run alone on a network of its own, in a process of its own that trusts a CA made for it: names
// lead to addresses that are public ones there, all of them this machine's, and every port is free. So daemons run as operators
// run them, with https on port 443, without TEST_MODE. It is true there, and false in the process that only waits for
// that. It needs root.
//
// 1.2.3.0/24 are addresses of the network; names are as in a hosts file.
func ownNetwork(t *testing.T, names map[string]string) bool {
	t.Helper()
	if os.Getenv(programsEnv) != "" {
		return true
	}
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Fatal("a network of its own needs root")
	}
	dir := t.TempDir()
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	var all []string
	for name, address := range names {
		hosts += address + " " + name + "\n"
		all = append(all, name)
	}
	ca, certificate := certificates(t, all)
	for file, content := range map[string]string{"hosts": hosts, "ca.pem": ca, "certificate.pem": certificate} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := "^" + t.Name() + "$"
	if of, parts, ok := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); ok && strings.Contains(of, t.Name()) { // a part of it alone
		run += "/" + parts
	}
	const script = `ip=$1; shift; mount --bind "$0" /etc/hosts && "$ip" link set lo up && "$ip" address add 1.2.3.1/24 dev lo && exec "$@"`
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script,
		filepath.Join(dir, "hosts"), components.Path(t, "ip"), os.Args[0], "-test.run="+run, "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), programsEnv+"="+filepath.Dir(binaries.hold), certificateEnv+"="+filepath.Join(dir, "certificate.pem"),
		"SSL_CERT_FILE="+filepath.Join(dir, "ca.pem"), "TMPDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // and then all that it started
	runtime.LockOSThread()                                             // whose end would be taken for the process's
	defer runtime.UnlockOSThread()
	var out lockedBuffer
	cmd.Stdout = &out
	if testing.Verbose() { // as it comes
		cmd.Stdout = io.MultiWriter(&out, os.Stdout)
	}
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	switch said := out.String(); {
	case err == nil && strings.Contains(said, "--- PASS: "+t.Name()):
	case testing.Verbose():
		t.Error(err)
	default:
		t.Errorf("%v\n%s", err, said)
	}
	return false
}

// certificates are a new CA, and a certificate of it for names with its key.
func certificates(t *testing.T, names []string) (ca, certificate string) {
	t.Helper()
	encode := func(kind string, der []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a CA of the tests"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &caKey.PublicKey, caKey)
	ca = encode("CERTIFICATE", der, err)
	der, err = x509.CreateCertificate(rand.Reader, leaf, authority, &key.PublicKey, caKey)
	certificate = encode("CERTIFICATE", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	return ca, certificate + encode("PRIVATE KEY", der, err)
}
