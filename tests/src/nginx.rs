//! A real nginx of its own: static files, uploads, answers of every shape; its access log is the truth about requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::Site;
use crate::process::{Server, free_port};

pub struct Nginx {
    server: Option<Server>,
    dir: PathBuf,
    pub port: u16,
}

impl Nginx {
    pub fn start(site: &Site, name: &str) -> anyhow::Result<Self> {
        let dir = site.folder(name)?;
        for folder in ["www/files", "www/put", "tmp"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let port = free_port()?;
        let file = dir.join("nginx.conf");
        fs::write(&file, config(&dir, port))?;
        let mut nginx = Command::new("nginx");
        nginx.args(["-e", "stderr", "-c"]).arg(&file);
        let mut server = Server::start("nginx", &mut nginx, &dir.join("log"))?;
        server.wait_until("nginx listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Self { server: Some(server), dir, port })
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Where `/files/` is served from.
    pub fn files(&self) -> PathBuf {
        self.dir.join("www/files")
    }

    /// Where a PUT to `/put/` arrives.
    pub fn uploads(&self) -> PathBuf {
        self.dir.join("www/put")
    }

    /// The request lines it has answered, in order.
    pub fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub fn release(mut self) -> Option<u32> {
        self.server.take().map(Server::release)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(server) = self.server.take()
            && let Err(error) = server.stop(Signal::SIGTERM)
        {
            eprintln!("nginx: {error:#}");
        }
    }
}

fn config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        r#"
daemon off;
master_process off;
pid {dir}/pid;
error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    log_format requests '$request_method $request_uri $status';
    access_log {dir}/access.log requests;
    client_body_temp_path {dir}/tmp/body;
    proxy_temp_path {dir}/tmp/proxy;
    fastcgi_temp_path {dir}/tmp/fastcgi;
    uwsgi_temp_path {dir}/tmp/uwsgi;
    scgi_temp_path {dir}/tmp/scgi;
    client_max_body_size 0;
    types {{ text/plain txt; application/json json; text/html html; application/octet-stream bin; }}
    server {{
        listen 127.0.0.1:{port};
        root {dir}/www;
        location /files/ {{ gzip on; gzip_types text/plain application/json; gzip_min_length 100; }}
        location /put/ {{ dav_methods PUT DELETE; create_full_put_path on; }}
        location /admin/ {{ return 200 "the admin's page\n"; }}
        location = /orders {{ default_type application/json; return 200 '{{"orders": []}}'; }}
        location = /hello {{ default_type text/plain; return 200 "hello\n"; }}
        location = /empty {{ return 204; }}
        location = /moved {{ return 301 /hello; }}
        location = /teapot {{ return 418 "short and stout\n"; }}
        location = /broken {{ return 500; }}
        location = /closes {{ return 444; }}
    }}
}}
"#
    )
}
