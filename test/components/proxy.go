package components

import (
	"os"
	"os/exec"
	"path/filepath"
)

// Proxy is a running reverse proxy.
type Proxy struct{ process *process }

// Log is what the proxy has written to its logs, where its configuration leads them to its standard output or error.
func (p *Proxy) Log() string { return p.process.output.all() }

// Proxies are the names of the reverse proxies.
func Proxies() []string { return []string{"nginx", "haproxy", "caddy"} }

// StartProxy starts one of Proxies and waits until it listens at address. Its configuration is what an operator adds to
// that which Debian's package brings, and listens where it says.
func StartProxy(tb TB, name, configuration, address string) *Proxy {
	tb.Helper()
	dir := tb.TempDir()
	file := filepath.Join(dir, "configuration")
	cmd := exec.Command(Path(tb, name))
	cmd.Dir, cmd.Env = dir, []string{"HOME=" + dir}
	switch name {
	case "nginx":
		configuration = "daemon off;\nuser root;\npid nginx.pid;\nevents {}\nhttp {\n" +
			"client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\nuwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n" +
			"access_log off;\n" + configuration + "\n}\n"
		cmd.Args = append(cmd.Args, "-p", dir, "-e", "/dev/stderr", "-c", file)
	case "haproxy":
		configuration = "global\n    log stdout format raw local0\n\n" + configuration
		cmd.Args = append(cmd.Args, "-db", "-f", file)
	case "caddy":
		cmd.Args = append(cmd.Args, "run", "--adapter", "caddyfile", "--config", file)
	default:
		tb.Fatalf("components: %s is no proxy", name)
	}
	if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
		tb.Fatalf("components: %v", err)
	}
	p := start(tb, name, cmd)
	p.ready(tb, listens(address))
	return &Proxy{p}
}
