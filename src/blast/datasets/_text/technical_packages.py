"""The Debian packages that `technical_text_large` adds to `technical_text`, with the main licences of their texts.

The comments say how many million characters were read of each (Debian 12, November 2026).
"""

from __future__ import annotations

from blast.datasets._text.text_packages import TextPackage

# Download sizes together.
BYTES = 691441068
PACKAGES: tuple[TextPackage, ...] = (
    TextPackage("ada-reference-manual-2012", "Ada Reference Manual licence"),  # 18.0
    TextPackage("ant-doc", "Apache-2.0"),  # 3.3
    TextPackage("apache2-doc", "Apache-2.0"),  # 2.3
    TextPackage("bind9-doc", "MPL-2.0"),  # 1.2
    TextPackage("checkstyle-doc", "LGPL-2.1"),  # 1.3
    TextPackage("cinder-doc", "Apache-2.0"),  # 2.1
    TextPackage("clang-14-doc", "Apache-2.0 with LLVM exception"),  # 1.6
    TextPackage("cmake-doc", "BSD-3-clause"),  # 2.7
    TextPackage("cppreference-doc-en-html", "CC-BY-SA-3.0 or GFDL-1.3"),  # 6.8
    TextPackage("crystal-doc", "Apache-2.0"),  # 1.6
    TextPackage("db5.3-doc", "Sleepycat"),  # 5.6
    TextPackage("debian-policy", "GPL-2+"),  # 1.8
    TextPackage("debian-reference-en", "GPL-2+"),  # 1.4
    TextPackage("derby-doc", "Apache-2.0"),  # 9.9
    TextPackage("developers-reference", "GPL-2+"),  # 1.0
    TextPackage("dict-devil", "public domain"),  # 0.4
    TextPackage("dict-foldoc", "GFDL"),  # 5.6
    TextPackage("dict-jargon", "public domain"),  # 1.4
    TextPackage("dict-wn", "WordNet 3.0"),  # 31.0
    TextPackage("dpdk-doc", "BSD-3-clause"),  # 7.2
    TextPackage("erlang-doc", "Apache-2.0"),  # 9.5
    TextPackage("fp-docs-3.2.2", "LGPL-2+ with linking exception"),  # 4.9
    TextPackage("gap-doc", "GPL-2+"),  # 3.8
    TextPackage("ghc-doc", "BSD-3-clause"),  # 16.4
    TextPackage("git-doc", "GPL-2"),  # 5.6
    TextPackage("gnuplot-doc", "gnuplot"),  # 1.6
    TextPackage("groovy-doc", "Apache-2.0"),  # 5.4
    TextPackage("icu-doc", "Unicode"),  # 3.9
    TextPackage("keystone-doc", "Apache-2.0"),  # 1.3
    TextPackage("krb5-doc", "MIT Kerberos"),  # 0.8
    TextPackage("lazarus-doc-2.2", "LGPL-2+ with linking exception"),  # 5.1
    TextPackage("libapache-poi-java-doc", "Apache-2.0"),  # 4.5
    TextPackage("libbiojava6-java-doc", "LGPL-2.1+"),  # 2.4
    TextPackage("libboost1.81-doc", "BSL-1.0"),  # 8.3
    TextPackage("libcommons-lang3-java-doc", "Apache-2.0"),  # 1.2
    TextPackage("libcommons-math3-java-doc", "Apache-2.0"),  # 2.4
    TextPackage("libglib2.0-doc", "LGPL-2.1+"),  # 4.2
    TextPackage("libgtk-3-doc", "LGPL-2+"),  # 4.2
    TextPackage("libgtk-4-doc", "LGPL-2.1+"),  # 2.5
    TextPackage("libhtsjdk-java-doc", "MIT"),  # 1.6
    TextPackage("libjaxb-java-doc", "CDDL-1.1 or GPL-2 with Classpath exception"),  # 1.3
    TextPackage("libjfreechart-java-doc", "LGPL-2.1+"),  # 2.8
    TextPackage("libopenjfx-java-doc", "GPL-2 with Classpath exception"),  # 3.3
    TextPackage("libpdfbox-java-doc", "Apache-2.0"),  # 1.2
    TextPackage("libreoffice-help-en-us", "MPL-2.0"),  # 3.3
    TextPackage("libsaxonb-java-doc", "MPL-1.0"),  # 2.7
    TextPackage("libstdc++-12-doc", "GPL-3+ and GFDL"),  # 8.0
    TextPackage("libxalan2-java-doc", "Apache-2.0"),  # 2.2
    TextPackage("libxerces2-java-doc", "Apache-2.0"),  # 1.7
    TextPackage("llvm-14-doc", "Apache-2.0 with LLVM exception"),  # 5.0
    TextPackage("maxima-doc", "GPL-2+"),  # 2.4
    TextPackage("neutron-doc", "Apache-2.0"),  # 2.3
    TextPackage("nodejs-doc", "MIT"),  # 5.4
    TextPackage("octave-doc", "GPL-3+"),  # 2.4
    TextPackage("openjdk-17-doc", "GPL-2 with Classpath exception"),  # 27.1
    TextPackage("perl-doc", "GPL-1+ or Artistic"),  # 8.5
    TextPackage("pike8.0-doc", "GPL-2 or LGPL-2.1 or MPL-1.1"),  # 3.3
    TextPackage("postgresql-doc-15", "PostgreSQL"),  # 6.6
    TextPackage("python-astropy-doc", "BSD-3-clause"),  # 3.2
    TextPackage("python-django-doc", "BSD-3-clause"),  # 4.3
    TextPackage("python-pandas-doc", "BSD-3-clause"),  # 4.4
    TextPackage("python-scipy-doc", "BSD-3-clause"),  # 4.9
    TextPackage("python-sklearn-doc", "BSD-3-clause"),  # 4.9
    TextPackage("python-sqlalchemy-doc", "MIT"),  # 6.9
    TextPackage("python-statsmodels-doc", "BSD-3-clause"),  # 3.5
    TextPackage("python-sympy-doc", "BSD-3-clause"),  # 3.8
    TextPackage("qtbase5-doc-html", "GFDL-1.3"),  # 11.4
    TextPackage("racket-doc", "MIT or Apache-2.0"),  # 10.7
    TextPackage("rust-doc", "MIT or Apache-2.0"),  # 9.4
    TextPackage("sagemath-doc", "CC-BY-SA-3.0 and GPL-2+"),  # 32.6
    TextPackage("scala-doc", "BSD-3-clause"),  # 8.9
    TextPackage("singular-doc", "GPL-2 or GPL-3"),  # 16.5
    TextPackage("slurm-wlm-doc", "GPL-2+"),  # 2.0
    TextPackage("sqlite3-doc", "public domain"),  # 5.5
    TextPackage("swi-prolog-doc", "BSD-2-clause"),  # 2.8
    TextPackage("systemtap-doc", "GPL-2+ and GFDL"),  # 0.8
    TextPackage("twisted-doc", "MIT"),  # 7.9
    TextPackage("uima-doc", "Apache-2.0"),  # 2.8
    TextPackage("weechat-doc", "GPL-3+"),  # 0.9
    TextPackage("wx3.2-doc", "wxWindows"),  # 7.5
)
